"""What became of the jobs of a multirun, whatever launched them.

Hydra keeps the exit status of a job that another process or machine ran to itself. Here each job notes its own below
``hydra.sweep.dir``, which is one folder for all of them, and the process that started them reads the notes.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.experimental.callback import Callback
from omegaconf import DictConfig, open_dict, read_write

from dit4sr.errors import REQUEUE, UserError
from dit4sr.files import write_atomically

NOTES = ".jobs"
"""Folder of the notes in the sweep's."""

STOP = "stop"
"""File among the notes that tells the jobs of a multirun, in whatever process they run, to stop."""

UNKNOWN = -1
"""Status of a job that began and has not ended: it was killed, or still runs."""


@dataclass(frozen=True)
class Note:
    """What is known of a job.

    Attributes:
        number: of the job, from 0.
        overrides: what the command line sets for it.
        folder: that is its own.
        status: the verb's exit status, or UNKNOWN.
        message: why it is 2.
    """

    number: int
    overrides: tuple[str, ...]
    folder: str = ""
    status: int = UNKNOWN
    message: str = ""

    def __str__(self) -> str:
        said = {
            UNKNOWN: "ended before it was done",
            1: "partly done, see what it printed",
            REQUEUE: "told to stop; the same command goes on",
        }
        reason = self.message or said.get(self.status, f"exit status {self.status}")
        return f"{' '.join(self.overrides) or f'job {self.number}'}: {reason}"


class JobNotes(Callback):
    """Hydra callback: a multirun has one folder, and begins without the notes of an earlier one there."""

    sweep: Path | None = None
    """Of the multirun that this process started."""

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        sweep = str(config.hydra.sweep.dir)
        # Its name may hold what the jobs differ in, such as the model's name, and a job composes its own config.
        with read_write(config), open_dict(config):
            config.hydra.sweep.dir = sweep
            config.hydra.overrides.hydra.append(f"hydra.sweep.dir={quoted(sweep)}")
        JobNotes.sweep = Path(sweep)
        for path in (*(JobNotes.sweep / NOTES).glob("*.json"), JobNotes.sweep / NOTES / STOP):
            path.unlink(missing_ok=True)


def quoted(text: str) -> str:
    """A string as a value of Hydra's override grammar."""
    return "'" + re.sub(r"(\\*)(')", r"\1\1\\\2", text) + "'"


def note(status: int = UNKNOWN, message: str = "") -> None:
    """Note the status of the job that this process runs, one of a multirun.

    Raises:
        UserError: where an earlier job has the same folder.
    """
    hydra = HydraConfig.get()
    sweep, folder = Path(str(hydra.sweep.dir)), str(hydra.runtime.output_dir)
    own = Note(int(hydra.job.num), tuple(hydra.overrides.task), folder, status, message)
    for other in notes(sweep) if status == UNKNOWN else ():
        if other.folder == folder and other.number < own.number:
            raise UserError(
                f"{folder} is the folder of another job of this command too: give what is swept here one command and "
                "one out= each"
            )
    with write_atomically(sweep / NOTES / f"{own.number}.json") as temporary:
        temporary.write_text(json.dumps(asdict(own)), encoding="utf-8")


def notes(sweep: Path) -> list[Note]:
    """The notes of a multirun's jobs, in their order, each with the settings that not all of them share."""
    found = []
    for path in (sweep / NOTES).glob("*.json"):
        try:
            known: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
            found.append(Note(**{**known, "overrides": tuple(known["overrides"])}))
        except (OSError, ValueError, KeyError, TypeError):
            continue
    shared = set.intersection(*(set(n.overrides) for n in found)) if len(found) > 1 else set()
    own = [replace(n, overrides=tuple(o for o in n.overrides if o not in shared)) for n in found]
    return sorted(own, key=lambda n: n.number)


def ask_to_stop(sweep: Path) -> None:
    """Leave word for a multirun's jobs that they are to stop, as far as they look for it."""
    (sweep / NOTES).mkdir(parents=True, exist_ok=True)
    (sweep / NOTES / STOP).touch()


def asked_to_stop(sweep: Path) -> bool:
    """Whether there is word for a multirun's jobs to stop."""
    return (sweep / NOTES / STOP).exists()


def status_of(jobs: Sequence[Note]) -> int:
    """The exit status of a multirun: 0 all done, REQUEUE where a job was told to stop and can go on, 2 not one that
    could begin its work, 1 anything between."""
    if all(job.status == 0 for job in jobs):
        return 0
    if any(job.status == REQUEUE for job in jobs):
        return REQUEUE
    return 2 if all(job.status == 2 for job in jobs) else 1


def report() -> int:
    """Print, on standard error, the jobs of this process's multirun that are not done.

    Returns:
        The exit status; 0 where this process started no multirun.
    """
    jobs = notes(JobNotes.sweep) if JobNotes.sweep is not None else []
    for job in jobs:
        if job.status != 0:
            print(f"not done: {job}", file=sys.stderr)
    return status_of(jobs)

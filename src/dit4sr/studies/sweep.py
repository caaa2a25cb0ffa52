"""A sweep's folder: which jobs are finished, which are not and why, and what is written when the last one ends."""

from __future__ import annotations

import contextlib
import json
import sys
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf

from dit4sr.errors import REQUEUE, UserError
from dit4sr.launching import asked_to_stop, notes, status_of
from dit4sr.studies.sweep_job import AFTER_TRAINING, CONFIG, EVALUATED, LOG, RECORD, Record, read_record
from dit4sr.studies.sweep_stop import LOCAL, launcher_of, stop_on_signals
from dit4sr.training.requeue import leave_on_signals

MODELS = ("dit4sr", "variant_a", "variant_b", "variant_c", "variant_d", "sd3_controlnet")
"""The order in which models are shown; others follow by name."""


@dataclass(frozen=True, eq=False)
class Job:
    """One evaluated job of a sweep.

    Attributes:
        folder: of the job.
        record: what is known of it.
        config: its config.yaml.
        summary: its evaluation's summary.json.
    """

    folder: Path
    record: Record
    config: Any
    summary: dict[str, Any]

    @property
    def model(self) -> str:
        """The model's name."""
        return self.record.model

    @property
    def seed(self) -> int:
        """The training's seed."""
        return self.record.seed

    @property
    def restored(self) -> Path:
        """Folder of the restored images."""
        return self.folder / "evaluation" / "restored"

    def means(self, method: str) -> dict[str, float]:
        """Mean by metric of a method of this job's evaluation."""
        statistics = self.summary["methods"].get(method, {})
        return {name: s["mean"] for name, s in statistics.items() if s["mean"] is not None}

    @cached_property
    def rows(self) -> list[Any]:
        """The evaluation's rows, see :class:`dit4sr.evaluation.tables.Row`."""
        from dit4sr.evaluation.tables import read_rows

        return read_rows(self.folder / "evaluation" / "per_image.csv")


@dataclass(frozen=True)
class Unfinished:
    """A job without a result."""

    folder: Path
    record: Record

    def __str__(self) -> str:
        reason = f": {self.record.reason}" if self.record.reason else ""
        return f"{self.folder.name} {self.record.state}{reason} (log: {self.folder / LOG})"


def order(model: str) -> tuple[int, str]:
    """Key that sorts models as they are shown."""
    return (MODELS.index(model) if model in MODELS else len(MODELS), model)


def jobs_of(sweep: Path) -> tuple[list[Job], list[Unfinished]]:
    """The evaluated jobs of a sweep, by model and seed, and those that are not finished.

    Jobs that were to train alone are in neither once they are finished.
    """
    finished, unfinished = [], []
    for path in sorted(sweep.glob(f"*/{RECORD}")):
        folder, record = path.parent, read_record(path.parent)
        if record is None:
            continue
        if record.state != "finished":
            unfinished.append(Unfinished(folder, record))
        elif (folder / EVALUATED).is_file() and (folder / "config.yaml").is_file():
            try:
                summary = json.loads((folder / EVALUATED).read_text(encoding="utf-8"))
            except ValueError:
                reason = f"{folder / EVALUATED} is cut off: delete it, and the same command evaluates again"
                unfinished.append(Unfinished(folder, replace(record, state="failed", reason=reason)))
                continue
            finished.append(Job(folder, record, config_of(folder), summary))
    return sorted(finished, key=lambda job: (order(job.model), job.seed)), unfinished


def config_of(folder: Path) -> Any:
    """The config.yaml of a job, with what it was evaluated with, which may be newer than the training."""
    config = OmegaConf.load(folder / "config.yaml")
    with contextlib.suppress(OSError):
        own: Any = OmegaConf.load(folder / CONFIG)
        config.update({name: own[name] for name in AFTER_TRAINING if name in own})
    return config


class SweepSummary(Callback):
    """Hydra callback: after a multirun of ``train``, write what compares the jobs, and list those that failed.

    Exits with status 1 where a job is not finished, also under launchers whose jobs run elsewhere; with REQUEUE where
    one was told to stop.
    """

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        if launcher_of(config) in LOCAL:
            stop_on_signals(Path(config.hydra.sweep.dir))

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        sweep = Path(config.hydra.sweep.dir)
        if asked_to_stop(sweep):
            sys.exit(REQUEUE)  # at once: what compares the jobs is written when they are done
        leave_on_signals()
        status = finish(sweep)
        sys.exit(REQUEUE if status_of(notes(sweep)) == REQUEUE else status)


def finish(sweep: Path) -> int:
    """Write table, picture and page of a sweep, print the table, and list what is not finished.

    Returns:
        0; 1 where a job is not finished.
    """
    from dit4sr.studies.ablation import summarise

    finished, unfinished = jobs_of(sweep)
    if finished:
        try:
            summarise(sweep, finished, unfinished)
        except UserError as error:
            print(f"error: {error}", file=sys.stderr)
            return 1
    for job in unfinished:
        print(f"not finished: {job}", file=sys.stderr)
    return 1 if unfinished else 0


def main(arguments: list[str]) -> int:
    """``python -m dit4sr.studies.sweep <folder>``: write table, picture and page again."""
    from dit4sr.cli import complain, quieten_libraries

    quieten_libraries()
    if len(arguments) != 1 or arguments[0].startswith("-"):
        print("python -m dit4sr.studies.sweep <sweep's folder>: write its table, picture and page again")
        return 0 if "--help" in arguments or "-h" in arguments else 2
    if not any(Path(arguments[0]).glob(f"*/{RECORD}")):
        return complain(f"{arguments[0]}: there is no job of a sweep in it; give the out= of a sweep of train.py")
    return finish(Path(arguments[0]))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

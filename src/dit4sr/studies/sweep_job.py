"""One job of a sweep: known again by its config, and run in a process of its own.

A job's folder holds ``job.json`` (its config's hash, whether it is finished, why it failed), ``job.yaml`` (the
config) and ``log.txt`` (all that it printed). The job's process knows nothing of the sweep: it may crash, run out of
memory or start the ranks of a distributed training without touching the other jobs.
"""

from __future__ import annotations

import hashlib
import json
import os
import signal
import sys
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from dit4sr.errors import REQUEUE, UserError
from dit4sr.files import write_atomically
from dit4sr.studies.sweep_process import ends_with_its_sweep, run_process

RECORD, CONFIG, LOG = "job.json", "job.yaml", "log.txt"
EVALUATED = Path("evaluation") / "summary.json"
TRAINED = Path("checkpoints") / "last.ckpt"

WITHOUT_EFFECT = ("out", "resume", "plan", "evaluate", "logger", "callbacks.progress", "paths.outputs", "revision")
"""Settings that do not change what a job finds, so that a sweep continues whatever they are."""

AFTER_TRAINING = ("benchmark", "metrics", "sampler")
"""Settings of the evaluation alone: where that has failed, a job goes on with others and is not trained again."""


@dataclass(frozen=True)
class Record:
    """What is known of a job.

    Attributes:
        state: running, finished, interrupted (it can go on) or failed.
        hash: of its config, see :func:`config_hash`.
        model, seed: as the config says.
        seconds: that the last attempt took.
        reason: the last line of a failed job's log.
    """

    state: str
    hash: str
    model: str
    seed: int
    seconds: float = 0.0
    reason: str = ""


def read_record(folder: Path) -> Record | None:
    """The record of a job's folder; None where there is none, or no whole one."""
    try:
        return Record(**json.loads((folder / RECORD).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None


def write_record(folder: Path, record: Record) -> None:
    """Write the record, atomically."""
    with write_atomically(folder / RECORD) as temporary:
        temporary.write_text(json.dumps(asdict(record), indent=1) + "\n", encoding="utf-8")


def flat(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """``{"a": {"b": 1}}`` → ``{"a.b": 1}``; lists stay whole."""
    found: dict[str, Any] = {}
    for name, value in config.items():
        if isinstance(value, Mapping) and value:
            found |= flat(value, f"{prefix}{name}.")
        else:
            found[f"{prefix}{name}"] = value
    return found


def decisive(config: Mapping[str, Any]) -> dict[str, Any]:
    """The settings, flat, that decide what a job finds."""
    names = flat(config)
    return {
        name: value for name, value in names.items() if not any(f"{name}.".startswith(f"{w}.") for w in WITHOUT_EFFECT)
    }


def config_hash(config: Mapping[str, Any]) -> str:
    """16 hex digits: equal for configs that find the same."""
    text = json.dumps(decisive(config), sort_keys=True, default=str)
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()


def has_result(folder: Path, config: Mapping[str, Any]) -> bool:
    """Whether what the job was to find is there."""
    return (folder / (EVALUATED if config["evaluate"] else TRAINED)).exists()


def run(config: DictConfig, explicit: Collection[str] = ()) -> int:
    """Run one job of a Hydra multirun of ``train``, unless it is finished.

    Args:
        config: configs/train.yaml, composed.
        explicit: not needed.

    Returns:
        0 finished, now or before; 1 failed: the record and the log say why; REQUEUE told to stop.
    """
    from hydra.core.hydra_config import HydraConfig

    from dit4sr.launching import JobNotes
    from dit4sr.studies.sweep_stop import left_alone, queue_again, watch_for_the_end

    if int(os.environ.get("WORLD_SIZE", 1)) > 1:
        raise UserError(
            "a sweep starts the processes of its jobs itself: leave torchrun out, and set trainer=ddp trainer.devices=N"
        )
    folder = Path(HydraConfig.get().runtime.output_dir)
    try:
        plain: dict[str, Any] = OmegaConf.to_container(config, resolve=True)  # type: ignore[assignment]
    except OmegaConfBaseException as error:
        folder.mkdir(parents=True, exist_ok=True)
        reason = " ".join(str(error).split())
        write_record(folder, Record("failed", "", folder.name, 0, reason=reason))
        print(f"{folder.name}: failed: {reason}", file=sys.stderr)
        return 1
    plain["out"] = str(folder)
    if plain["plan"]:
        from dit4sr.training.plan import print_plan

        print_plan(plain)
        return 0
    told = watch_for_the_end(OmegaConf.create({"hydra": HydraConfig.get()}))
    status = REQUEUE if told() else run_job(plain, folder, told)
    queue_again()
    if told() and JobNotes.sweep is None and left_alone():  # a worker whose sweep was killed: nobody asks for more
        os._exit(status)
    return status


def run_job(config: dict[str, Any], folder: Path, told: Callable[[], bool] = lambda: False) -> int:
    """Run a job in a process of its own, unless it is finished; see :func:`run`.

    Args:
        config: configs/train.yaml, composed and resolved.
        folder: of the job.
        told: whether the job is to be stopped; asked several times a second.
    """
    digest, before = config_hash(config), read_record(folder)
    other = changes(config, folder) if before is not None and before.hash != digest else {}
    if before is not None and other and any((folder / "checkpoints").glob("*.ckpt")):
        trained_so = all(name.split(".")[0] in AFTER_TRAINING for name in other)
        if before.state == "finished" or not trained_so:
            print(f"{folder.name}: failed: {other_config(folder, other)}", file=sys.stderr)
            return 1
    if before is not None and before.state == "finished" and not other and has_result(folder, config):
        print(f"{folder.name}: finished before, kept", file=sys.stderr)
        return 0
    known: dict[str, Any] = {"hash": digest, "model": str(config["model"]["name"]), "seed": int(config["seed"])}
    folder.mkdir(parents=True, exist_ok=True)
    with write_atomically(folder / CONFIG) as temporary:
        temporary.write_text(OmegaConf.to_yaml(OmegaConf.create(config)), encoding="utf-8")
    write_record(folder, Record("running", **known))
    print(f"{folder.name}: {'goes on' if before else 'starts'}, log in {folder / LOG}", file=sys.stderr)
    began = time.monotonic()
    state, status = "interrupted", REQUEUE
    try:
        command = [sys.executable, "-m", "dit4sr.studies.sweep_job", str(folder / CONFIG)]
        status = run_process(command, folder / LOG, told)
        done = status in (0, 1) and has_result(folder, config)  # 1: images of the benchmark were left out
        if not done and told():
            status = REQUEUE  # also where it was too slow to save itself, and was ended
        state = "finished" if done else "interrupted" if status in (REQUEUE, 130) else "failed"
    finally:
        reason = "" if state == "finished" else why(folder, status)
        write_record(folder, Record(state, **known, seconds=round(time.monotonic() - began, 1), reason=reason))
    print(f"{folder.name}: {state}" + (f": {reason}" if reason else ""), file=sys.stderr)
    return 0 if state == "finished" else REQUEUE if status == REQUEUE else 1


def changes(config: Mapping[str, Any], folder: Path) -> dict[str, str]:
    """Settings in which a config differs from that of a job's folder, flat: name → old and new value.

    Settings that one of them has not are left out: the code has them since, or no longer.
    """
    try:
        old = decisive(OmegaConf.to_container(OmegaConf.load(folder / CONFIG)))  # type: ignore[arg-type]
    except OSError:
        return {CONFIG: "is not readable"}
    new = decisive(config)
    return {name: f"{value} → {new[name]}" for name, value in old.items() if name in new and value != new[name]}


def other_config(folder: Path, found: Mapping[str, str]) -> str:
    """One line: this folder is another job's, and what differs (see :func:`changes`)."""
    shown = ", ".join(f"{name} {values}" for name, values in list(found.items())[:3])
    more = f" and {len(found) - 3} more" if len(found) > 3 else ""
    return f"{folder} is of a job with another config ({shown}{more}): give another out=<folder>"


def why(folder: Path, status: int) -> str:
    """Why a job is not finished: the last line that it printed, or the signal that ended it."""
    if status < 0:
        return f"ended by {signal.Signals(-status).name}"
    if status == REQUEUE:
        return "told to stop; the same command goes on from there"
    lines = (folder / LOG).read_text(encoding="utf-8", errors="replace").replace("\r", "\n").split("\n")
    lines = [line.strip() for line in lines if line.strip()]
    errors = [line for line in lines if line.startswith("error: ")]
    return (errors or lines or [f"exit status {status}"])[-1].removeprefix("error: ")[:500]


def main(arguments: list[str]) -> int:
    """The job's process: train, and evaluate, as its config file says.

    Returns:
        As the verb ``train`` does.
    """
    from dit4sr.cli import complain, quieten_libraries
    from dit4sr.training.requeue import leave_on_signals

    leave_on_signals()
    quieten_libraries()
    try:
        from dit4sr.training.run import run as train

        config = OmegaConf.load(arguments[0])
        assert isinstance(config, DictConfig)
        with ends_with_its_sweep():
            return train(config, set())
    except UserError as error:
        return complain(" ".join(str(error).split()))
    except KeyboardInterrupt:
        return complain("interrupted; what was written so far is kept", 130)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

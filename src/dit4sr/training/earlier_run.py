"""A new run into the folder of an earlier one: what that has written is set aside, neither mixed in nor removed."""

from __future__ import annotations

from pathlib import Path

from dit4sr.errors import UserError
from dit4sr.files import flush
from dit4sr.training.checkpoint_files import LAST, STEP_FILE, step_files

WRITTEN = ("metrics.csv", "spikes.csv", "heartbeat.json", "faults", "validation", "evaluation", "config.yaml")
"""What a run writes beside its ``checkpoints``."""

CHECKPOINTS = "checkpoints"


def set_aside(out: Path) -> Path | None:
    """Move an earlier run's files into ``<out>/earlier-<n>``, which is then a run's folder like any other.

    The checkpoints go last: a process that is killed in between leaves a run that can go on, and nothing is lost.
    To be called by one process, before any of the run writes.

    Args:
        out: the run's folder.

    Returns:
        The folder; None where no earlier run has left a checkpoint.

    Raises:
        UserError: they cannot be moved.
    """
    if not any((out / CHECKPOINTS).glob("[!.]*.ckpt")):  # hidden ones are half written
        return None
    return _moved(out, [Path(name) for name in (*WRITTEN, CHECKPOINTS) if (out / name).exists()])


def set_later_aside(out: Path, checkpoint: Path, step: int) -> Path | None:
    """Move the checkpoints of later steps likewise, where a run goes on from an earlier one that was named: the next
    ``resume=auto`` would follow them.

    Args:
        out: the run's folder.
        checkpoint: that it goes on from, which stays.
        step: of that.

    Returns:
        The folder; None where there are none.

    Raises:
        UserError: they cannot be moved.
    """
    steps = {path: int(STEP_FILE.fullmatch(path.name)[1]) for path in step_files(out / CHECKPOINTS)}  # type: ignore[index]
    later = [path for path, own in steps.items() if own > step]
    # A link to one of them, or, in a run that was copied, a file of its own.
    last, staying = out / CHECKPOINTS / LAST, [checkpoint, *(path for path in steps if path not in later)]
    if later and last.exists() and not any(last.samefile(path) for path in staying):
        later.insert(0, last)
    return _moved(out, [path.relative_to(out) for path in later]) if later else None


def _moved(out: Path, names: list[Path]) -> Path:
    """What has these names in ``out``, moved to the same names in a new folder there, in their order."""
    number = 1
    while (out / f"earlier-{number}").exists():
        number += 1
    earlier = out / f"earlier-{number}"
    try:
        earlier.mkdir()
        for name in names:
            (earlier / name).parent.mkdir(exist_ok=True)
            (out / name).rename(earlier / name)
        flush(earlier)
        flush(out)
    except OSError as error:
        raise UserError(
            f"the earlier run in {out} cannot be set aside ({error.strerror}): give another out=<folder>"
        ) from error
    return earlier


def belongs_to(checkpoint: Path, out: Path) -> bool:
    """Whether a checkpoint is of the run in ``out``, which then goes on."""
    return checkpoint.resolve().is_relative_to((out / CHECKPOINTS).resolve())

"""A new run into the folder of an earlier one: what that has written is set aside, neither mixed in nor removed."""

from __future__ import annotations

from pathlib import Path

from dit4sr.errors import UserError
from dit4sr.files import flush

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
    number = 1
    while (out / f"earlier-{number}").exists():
        number += 1
    earlier = out / f"earlier-{number}"
    try:
        earlier.mkdir()
        for name in (*WRITTEN, CHECKPOINTS):
            if (out / name).exists():
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

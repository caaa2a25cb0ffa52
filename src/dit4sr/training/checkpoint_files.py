"""The files of a run's ``checkpoints`` folder, and which of them can be trusted.

A checkpoint is the zip archive that ``torch.save`` writes; each of its members carries a CRC-32, so a truncated or
bit-flipped file is found without a checksum file beside it.
"""

from __future__ import annotations

import re
import zipfile
import zlib
from collections.abc import Callable, Iterable
from pathlib import Path

LAST, BEST = "last.ckpt", "best.ckpt"
STEP_FILE = re.compile(r"step-(\d+)\.ckpt")


def step_file(folder: Path, step: int) -> Path:
    """Where the checkpoint of a step lies."""
    return folder / f"step-{step:09d}.ckpt"


def step_files(folder: Path) -> list[Path]:
    """The checkpoints of steps, the newest first."""
    found = [(int(match[1]), path) for path in folder.glob("step-*.ckpt") if (match := STEP_FILE.fullmatch(path.name))]
    return [path for _, path in sorted(found, reverse=True)]


def damage(path: Path) -> str | None:
    """What is wrong with a checkpoint file; None where every byte that counts is as it was written."""
    try:
        with zipfile.ZipFile(path) as archive:
            bad = archive.testzip()
    except (zipfile.BadZipFile, zlib.error, EOFError, OSError, ValueError, NotImplementedError, RuntimeError) as error:
        return f"it is no whole file ({error})"
    return None if bad is None else f"its part {bad} is damaged"


def newest_valid(folder: Path, warn: Callable[[str], None] = print) -> Path | None:
    """The newest checkpoint of a run's ``checkpoints`` folder that is whole; None where there is none.

    Args:
        folder: the run's ``checkpoints``.
        warn: called with a line for each damaged checkpoint that was passed over.
    """
    last = folder / LAST
    candidates = step_files(folder)
    if last.is_file() and not any(last.samefile(path) for path in candidates):
        candidates.insert(0, last)
    for path in candidates:
        reason = damage(path)
        if reason is None:
            return path
        warn(f"warning: {path} is passed over: {reason}")
    return None


def remove_partial(folder: Path, names: Iterable[str] = ("step-*.ckpt", "last.ckpt", "best.ckpt")) -> None:
    """Remove what a killed process left half written (``.<name>.<random>.ckpt``); it was visible to nobody."""
    for name in names:
        stem = name.removesuffix(".ckpt")
        for partial in folder.glob(f".{stem}.*.ckpt"):
            partial.unlink(missing_ok=True)

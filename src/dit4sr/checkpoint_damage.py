"""Whether a checkpoint, be it a file or the folder that several processes wrote, is as it was written."""

from __future__ import annotations

from pathlib import Path

from dit4sr import checkpoint_archive


def damage(path: Path) -> str | None:
    """What is wrong with a checkpoint; None where every byte that counts is as it was written."""
    if path.is_dir():
        from dit4sr import sharded_files  # late: it imports torch

        return sharded_files.damage(path)
    return checkpoint_archive.damage(path)

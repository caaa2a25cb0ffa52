"""Writing files so that a half-written one is never seen under its final name."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def write_atomically(path: str | Path, *, durable: bool = False) -> Iterator[Path]:
    """Yield a temporary path beside ``path``; at the end of the block it takes the final name.

    The temporary name keeps the suffix, for writers that choose the format by it, begins with a dot, and is
    no other writer's, so that two processes may write the same file: the last one wins. The parent folders
    are made. If the block raises, the temporary file is removed and ``path`` is as it was.

    Args:
        path: the final name.
        durable: flush the file and its folder to the disk, so that it outlives a power cut too.

    Example:
        with write_atomically("outputs/table.csv") as temporary:
            temporary.write_text(text)
    """
    path = Path(path)
    with unfinished(path) as temporary:
        yield temporary
        if durable:
            flush(temporary)
        os.replace(temporary, path)
        if durable:
            flush(path.parent)


@contextmanager
def unfinished(path: Path) -> Iterator[Path]:
    """Yield a hidden name beside ``path``, no other writer's; a file that still has it at the end is removed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.stem}.{uuid.uuid4().hex[:12]}{path.suffix}")
    try:
        yield temporary
    finally:
        temporary.unlink(missing_ok=True)


def flush(path: Path) -> None:
    """Until what a file or a folder holds is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)

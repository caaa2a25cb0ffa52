"""Writing files so that a half-written one is never seen under its final name, and saying why it cannot be."""

from __future__ import annotations

import errno
import os
import re
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from dit4sr.errors import UserError

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
DENIED = (errno.EACCES, errno.EPERM, errno.EROFS)
MISPLACED = (errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ENAMETOOLONG, errno.ELOOP, errno.EIO, errno.ESTALE)
"""Of a file below the folder: what is in the way there, or a disk that fails."""


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
    # The stem's beginning alone: a name may have 255 bytes, and a photo's own may have them all.
    temporary = path.with_name(f".{path.stem[:40]}.{uuid.uuid4().hex[:12]}{path.suffix}")
    try:
        yield temporary
    except OSError as error:
        if error.errno in FULL and error.filename is None:  # write() does not say where
            error.filename = str(path)
        raise
    finally:
        temporary.unlink(missing_ok=True)


def flush(path: Path) -> None:
    """Until what a file or a folder holds is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def disk_errors(folder: Path, *, setting: str = "out", goes_on: bool = False) -> Iterator[None]:
    """Say in one line that a disk is full, or that a folder cannot be written to; other errors stay what they are.

    Args:
        folder: where the block writes; named where the error itself names no file.
        setting: that chooses the folder.
        goes_on: whether the same command goes on where it stopped.

    Raises:
        UserError: in place of such an error.
    """
    try:
        yield
    except Exception as error:
        if (line := disk_error(error, folder, setting=setting, goes_on=goes_on)) is None:
            raise
        raise UserError(line) from error


def disk_error(error: Exception, folder: Path, *, setting: str = "out", goes_on: bool = False) -> str | None:
    """The line of :func:`disk_errors`; None for an error of another kind."""
    number, file = errno_of(error), file_of(error)
    another = f"give another {setting}=<folder>"
    if number in FULL:
        then = ", which goes on where it stopped" if goes_on else f", or {another}"
        return f"no space left on the disk of {file or folder}: make room and run the same command again{then}"
    if number is None or file is None:
        return None
    inside = file.is_relative_to(folder)
    if number in DENIED or (inside and number in MISPLACED) or folder.is_relative_to(file):
        then = f", or {another}" if inside or folder.is_relative_to(file) else " and run the same command again"
        return f"{file}: {os.strerror(number)}: mend that{then}"
    return None


def errno_of(error: Exception) -> int | None:
    """The number of the system's error behind an error; safetensors has it in its words alone."""
    if isinstance(error, OSError):
        return error.errno
    if type(error).__name__ == "SafetensorError" and (found := re.search(r"\(os error (\d+)\)", str(error))):
        return int(found[1])
    return None


def file_of(error: Exception) -> Path | None:
    """The file that a system's error names, of a copy the one that was written; None where it names none."""
    named = (error.filename2 or error.filename) if isinstance(error, OSError) else None
    return Path(os.fsdecode(named)) if isinstance(named, str | bytes | os.PathLike) else None


def check_folder(folder: Path, setting: str = "out") -> None:
    """Refuse a folder that cannot be made or written to, before anything is computed for it.

    Raises:
        UserError: saying why.
    """
    place = folder.absolute()
    while not place.exists() and place != place.parent:
        place = place.parent
    if not place.is_dir() or not os.access(place, os.W_OK | os.X_OK):
        why = "cannot be written to" if place.is_dir() else "is a file"
        raise UserError(f"{setting}={folder}: {place} {why}: give another {setting}=<folder>")

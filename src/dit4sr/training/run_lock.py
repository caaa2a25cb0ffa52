"""One training per run folder: a second one is refused before it writes anything."""

from __future__ import annotations

import fcntl
import json
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from dit4sr.errors import UserError

NAME = ".lock"


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold ``<folder>/.lock`` for the duration of the block.

    The kernel drops the lock when the process ends, however it ends, so a killed run leaves nothing to clean up.

    Raises:
        UserError: another process holds it; the message says which.
    """
    made = not folder.exists()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(folder / NAME, os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as error:
        raise UserError(f"{folder} cannot be written to ({error.strerror}): give another out=<folder>") from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        holder = _holder(descriptor)
        os.close(descriptor)
        raise UserError(
            f"another run is training into {folder} ({holder}): wait for it, or give another out=<folder>"
        ) from error
    try:
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, json.dumps({"pid": os.getpid(), "host": socket.gethostname()}).encode(), 0)
        yield
    finally:
        if made and folder.is_dir() and [path.name for path in folder.iterdir()] == [NAME]:
            (folder / NAME).unlink()  # a run that was refused leaves nothing
            folder.rmdir()
        os.close(descriptor)


def _holder(descriptor: int) -> str:
    try:
        facts = json.loads(os.pread(descriptor, 1000, 0))
        return f"process {int(facts['pid'])} on {str(facts['host'])}"
    except (OSError, ValueError, KeyError, TypeError):
        return "process unknown"

"""Who is preparing a folder: one process a part, and whoever finishes it alone."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from filelock import BaseFileLock, FileLock, Timeout

from dit4sr.data.preparation.settings import Execution
from dit4sr.errors import UserError

WHOLE = ".whole.lock"


@contextmanager
def hold(out: Path, execution: Execution, *, wait: float = 0) -> Iterator[None]:
    """Hold a part of the work; the whole of it excludes every other process, a part only the same part and the whole.

    The locks are the operating system's: a process that is killed holds none.

    Args:
        out: the folder that is prepared, made if need be.
        execution: says which part.
        wait: seconds to wait for others.

    Raises:
        UserError: another process holds it.
    """
    with ExitStack() as held:
        out.mkdir(parents=True, exist_ok=True)
        if execution.whole:
            _take(held, out / WHOLE, wait, "another prepare is writing to the same folder")
            for path in sorted(out.glob(".part-*.lock")):
                part = path.stem.removeprefix(".part-").replace("-of-", "/")
                _take(held, path, wait, f"part={part} is still being prepared by another process")
        else:
            name = f".part-{execution.part}-of-{execution.parts}"
            _take(
                held, out / f"{name}.lock", wait, f"part={execution.part}/{execution.parts} is already being prepared"
            )
            with ExitStack() as briefly:
                message = "another prepare is writing the whole of the same folder"
                _take(briefly, out / WHOLE, max(wait, 5), message)
        yield


def remove_locks(out: Path) -> None:
    """Remove the files of the locks; whoever holds the whole may do so at the end."""
    for path in (out / WHOLE, *out.glob(".part-*.lock")):
        path.unlink(missing_ok=True)


def _take(held: ExitStack, path: Path, wait: float, message: str) -> None:
    lock: BaseFileLock = FileLock(path)
    until = time.monotonic() + wait
    while True:
        try:
            held.enter_context(lock.acquire(timeout=max(0, until - time.monotonic()), poll_interval=0.1))
            return
        except Timeout as error:
            raise UserError(f"{message} ({path.parent}): wait until it has ended.") from error
        except FileNotFoundError:  # who held it has finished, and removed the folder again
            path.parent.mkdir(parents=True, exist_ok=True)

"""Told to stop while no step is under way: end at once, with the status on which a scheduler starts the job again.

Before the first step (imports, weights, compilation, the first batch) and after the last one there is nothing to
save. Within training :class:`dit4sr.training.preemption.StopOnSignal` takes over. Imports nothing heavy: signals come
early too.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from dit4sr.errors import REQUEUE

SIGNALS = (signal.SIGTERM, signal.SIGUSR1)

LAUNCHER = "DIT4SR_LAUNCHER"
"""Tells a process which process started it, where no launcher did (see :mod:`dit4sr.training.distributed`)."""


def leave(number: int, frame: Any) -> None:
    """End this process; as a signal's handler."""
    if parent := os.environ.get(LAUNCHER):
        with suppress(ProcessLookupError):  # it was told, too, and has gone
            os.kill(int(parent), number)  # all end, or the others would wait for this one
    else:
        said = (
            f"told to stop ({signal.Signals(number).name}) while no step was under way: nothing is lost; the same "
            "command starts it again\n"
        )
        with suppress(OSError):
            os.write(2, said.encode())  # print may be what the signal interrupted
    for stream in (sys.stdout, sys.stderr):
        with suppress(RuntimeError, ValueError, OSError):  # interrupted itself, or closed
            stream.flush()
    os._exit(REQUEUE)  # unwinding would wait for weights that are being read, and for other processes


def leave_on_signals() -> dict[int, Any]:
    """From now on signals end the process so; returns the handlers before. Nothing in a thread."""
    if threading.current_thread() is not threading.main_thread():
        return {}
    return {number: signal.signal(number, leave) for number in SIGNALS}


@contextmanager
def leaving_on_signals() -> Iterator[None]:
    """Within the block signals end the process so."""
    before = leave_on_signals()
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)

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
from dit4sr.helper_processes import SIGNALS

LEFT = 76
"""Exit status of a process that another of the run had started (:data:`LAUNCHER`) and that has left before the first
step, for that one to read: it then ends with REQUEUE, as if it had been told first."""

LAUNCHER = "DIT4SR_LAUNCHER"
"""Tells a process which process started it, where no launcher did (see :mod:`dit4sr.training.distributed`)."""


def leave(number: int, frame: Any) -> None:
    """End this process; as a signal's handler."""
    if parent := os.environ.get(LAUNCHER):
        with suppress(ProcessLookupError):  # it was told, too, and has gone
            os.kill(int(parent), number)  # all end, or the others would wait for this one
        end_with(LEFT)
    say_nothing_is_lost(signal.Signals(number).name)
    end_with(REQUEUE)


def say_nothing_is_lost(told: str) -> None:
    """One line on standard error, by a call that a signal's handler may make."""
    said = f"told to stop ({told}) while no step was under way: nothing is lost; the same command starts it again\n"
    with suppress(OSError):
        os.write(2, said.encode())  # print may be what the signal interrupted


def end_with(status: int) -> None:
    """End this process now."""
    for stream in (sys.stdout, sys.stderr):
        with suppress(RuntimeError, ValueError, OSError):  # interrupted itself, or closed
            stream.flush()
    os._exit(status)  # unwinding would wait for weights that are being read, and for other processes


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

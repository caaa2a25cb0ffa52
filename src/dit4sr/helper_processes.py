"""Processes that help a run and end when it does: signals to the whole job are for the run's own process to answer.

A scheduler sends its signals to every process of a job. Data workers, or W&B's writer, that ended of them would take
the run down before it has saved itself.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

SIGNALS = (signal.SIGTERM, signal.SIGUSR1)
"""By which schedulers tell a job to stop."""

TELLS_SENDERS = hasattr(signal, "sigwaitinfo")
"""Whether a process can tell who has sent it a signal; macOS does not say."""


@contextmanager
def deaf_to_signals() -> Iterator[None]:
    """A process that is started within the block never hears those signals; this one does, at its end at the latest.

    They are blocked in this thread, which a new program inherits, unlike handlers.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def start_fork_server(preload: list[str]) -> Any:
    """Start the process that forks data workers, if it does not run yet.

    Args:
        preload: modules that it imports once.

    Returns:
        The context of multiprocessing whose processes it forks.
    """
    from multiprocessing import forkserver, resource_tracker

    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(preload)
    if TELLS_SENDERS:
        with deaf_to_signals():
            resource_tracker.ensure_running()  # starting it unblocks SIGTERM
        with deaf_to_signals():
            forkserver.ensure_running()
    return context


def heed_the_run_alone(run: int) -> None:
    """In a process of the fork server: SIGTERM ends it where the run itself sends it, as multiprocessing does.

    Args:
        run: the run's process.
    """
    if not TELLS_SENDERS:
        return

    def wait() -> None:
        while signal.sigwaitinfo([signal.SIGTERM]).si_pid != run:
            pass
        os._exit(0)

    signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)  # where the fork server ran before
    threading.Thread(target=wait, daemon=True, name="signals").start()


def cores() -> int:
    """CPU cores that this process, and those that it starts, may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1

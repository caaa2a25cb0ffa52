"""Stopping a sweep: its jobs save themselves, none of the others begins, and the same command goes on.

A signal reaches the process that started the sweep, a launcher's worker process, or all of them. Under joblib the first
one has no hand on what its workers wait for: it leaves word in the sweep's folder, and ends when they have ended.
Launchers of a cluster's scheduler have signals and rules of their own. submitit queues a job again as soon as SLURM
warns it, and SLURM then kills it within seconds: here the job saves itself first.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from dit4sr.helper_processes import SIGNALS
from dit4sr.launching import JobNotes, ask_to_stop, asked_to_stop

LOCAL = ("basic", "joblib")
"""Hydra's launchers whose jobs end with the process that started the sweep."""


class Told:
    """Whether a signal has told this process to stop."""

    received: int | None = None

    def receive(self, number: int, frame: Any) -> None:
        """Note it; as a signal's handler."""
        self.received = number


HERE = Told()


def launcher_of(config: DictConfig) -> str:
    """The name of a multirun's launcher, such as basic, joblib or submitit.

    Args:
        config: with Hydra's own part.
    """
    package = str(config.hydra.launcher._target_).split(".")
    return "basic" if "basic_launcher" in package else package[1].removeprefix("hydra_").removesuffix("_launcher")


def heed_signals(handler: Callable[[int, Any], None] | None = None) -> None:
    """From now on SIGTERM and SIGUSR1 are noted, and :func:`told_to_stop` tells. Nothing in a thread."""
    HERE.received = None
    if threading.current_thread() is threading.main_thread():
        for number in SIGNALS:
            signal.signal(number, handler or HERE.receive)


def stop_on_signals(sweep: Path) -> None:
    """In the process that starts a sweep: note signals, and leave word in the sweep's folder too."""

    def receive(number: int, frame: Any) -> None:
        if HERE.received is None:
            said = (
                f"told to stop ({signal.Signals(number).name}): jobs that run save themselves, no other begins; the "
                "same command goes on from there\n"
            )
            with suppress(OSError):
                os.write(2, said.encode())  # print may be what the signal interrupted
        HERE.receive(number, frame)
        with suppress(OSError):
            ask_to_stop(sweep)

    heed_signals(receive)


def told_to_stop() -> bool:
    """Whether a signal has told this process to stop."""
    return HERE.received is not None


PARENT = os.getppid()


def left_alone() -> bool:
    """Whether the process that started this one has ended."""
    return os.getppid() != PARENT


def watch_for_the_end(config: DictConfig) -> Callable[[], bool]:
    """What tells the process that runs a job of a multirun whether it is to stop.

    Args:
        config: Hydra's own, of the job.
    """
    sweep = Path(str(config.hydra.sweep.dir))
    if JobNotes.sweep is not None:  # the process that started the sweep
        return lambda: told_to_stop() or asked_to_stop(sweep)
    if launcher_of(config) == "submitit":
        return warned_by_scheduler()
    if launcher_of(config) not in LOCAL:
        return lambda: False
    if signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:  # a worker's first job
        heed_signals()
    return lambda: told_to_stop() or asked_to_stop(sweep) or left_alone()


QUEUE_AGAIN: list[Callable[[int, Any], None]] = []
"""submitit's own handler of the scheduler's warning, once it has been put off."""


def warned_by_scheduler() -> Callable[[], bool]:
    """Note SLURM's warning, SIGUSR2, in place of submitit's handler; what tells whether it has come."""
    before = signal.getsignal(signal.SIGUSR2)
    if callable(before) and threading.current_thread() is threading.main_thread():
        QUEUE_AGAIN[:] = [before]
        HERE.received = None
        signal.signal(signal.SIGUSR2, HERE.receive)
    return told_to_stop


def queue_again() -> None:
    """The job has saved itself: have submitit queue it again, which ends this process."""
    if QUEUE_AGAIN and HERE.received == signal.SIGUSR2:
        QUEUE_AGAIN.pop()(signal.SIGUSR2, None)

"""The process of a sweep's job: how it is waited for, and how it ends with its sweep."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

PATIENCE = 180.0
"""Seconds that a job gets to save itself when its sweep is stopped: several processes go on for up to ten steps."""


def run_process(command: Sequence[str], log: Path, told: Callable[[], bool]) -> int:
    """Start the job's process, show what it prints, and wait for it.

    The process holds the other end of its standard input: when this process lets go of it, or ends, however it ends,
    the job saves itself and stops, as it does on SIGTERM.

    Args:
        command: its arguments.
        log: to which what it prints is added.
        told: whether the job is to be stopped.

    Returns:
        The exit status, as :class:`subprocess.Popen` has it.
    """
    shown = log.stat().st_size if log.is_file() else 0
    with log.open("ab") as output:
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=output, stderr=subprocess.STDOUT)
    with log.open("rb") as written:
        written.seek(shown)

        def show() -> None:
            sys.stderr.write(written.read().decode("utf-8", errors="replace"))
            sys.stderr.flush()

        try:
            while process.poll() is None and not told():
                show()
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(0.3)
        finally:
            end(process)
        show()
    return process.returncode


def end(process: subprocess.Popen[bytes]) -> None:
    """Let a job save itself, if it has not ended, and wait until it is gone."""
    if process.stdin is not None:
        process.stdin.close()
    if process.poll() is None:
        try:
            process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


@contextlib.contextmanager
def ends_with_its_sweep() -> Iterator[None]:
    """Send this process SIGTERM when its standard input ends, or when SLURM warns it by SIGUSR2."""

    def wait_for_the_end() -> None:
        with contextlib.suppress(OSError):
            while os.read(0, 4096):
                pass
        if not left.is_set():
            os.kill(os.getpid(), signal.SIGTERM)

    left = threading.Event()
    signal.signal(signal.SIGUSR2, lambda *_: os.kill(os.getpid(), signal.SIGTERM))
    threading.Thread(target=wait_for_the_end, daemon=True).start()
    try:
        yield
    finally:
        left.set()

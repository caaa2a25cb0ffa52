"""Processes that help a run outlive signals to the whole job, and end with the run all the same."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from dit4sr.helper_processes import SIGNALS, deaf_to_signals

PROGRAM = """
import os, signal, sys, time
from functools import partial
from torch.utils.data import DataLoader, IterableDataset
from dit4sr.helper_processes import heed_the_run_alone, start_fork_server

class Stuck(IterableDataset):
    def __iter__(self):
        yield os.getpid()
        while True:
            time.sleep(1)

def begin(worker, run):
    heed_the_run_alone(run)

if __name__ == "__main__":
    loader = DataLoader(Stuck(), batch_size=None, num_workers=1, prefetch_factor=1,
                        worker_init_fn=partial(begin, run=os.getpid()),
                        multiprocessing_context=start_fork_server([]))
    iterator = iter(loader)
    worker = next(iterator)
    print(worker, flush=True)
    sys.stdin.read()
    print("ends", flush=True)
    if sys.argv[1] == "told once":
        os.kill(worker, signal.SIGTERM)
        time.sleep(60)  # the test looks for the worker meanwhile
"""


def blocked(pid: int) -> set[int]:
    """The signals that a process's main thread does not hear."""
    status = Path(f"/proc/{pid}/status").read_text()
    mask = next(int(line.split()[1], 16) for line in status.splitlines() if line.startswith("SigBlk:"))
    return {number for number in SIGNALS if mask >> (number - 1) & 1}


@pytest.mark.parametrize("how", ["told once", "at the exit"])
def test_a_data_worker_outlives_others_signals_and_ends_with_the_run(how: str, tmp_path: Path) -> None:
    """It is stuck, as one that waits for a server: it would not end by itself."""
    path = tmp_path / "program.py"
    path.write_text(PROGRAM)
    with subprocess.Popen(
        [sys.executable, path, how], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdin is not None and process.stdout is not None
        worker = int(process.stdout.readline())
        server = int(Path(f"/proc/{worker}/stat").read_text().rpartition(")")[2].split()[1])
        assert blocked(server) == blocked(worker) == set(SIGNALS)
        for pid in (worker, server, worker, server):
            for number in SIGNALS:
                os.kill(pid, number)
            time.sleep(0.3)
        assert runs(worker) and runs(server)
        process.stdin.close()
        assert process.stdout.readline() == "ends\n"
        deadline = time.monotonic() + 300
        while runs(worker):
            assert time.monotonic() < deadline
            time.sleep(0.1)
        if how == "told once":
            process.kill()
        process.wait(600)
        while runs(server):
            assert time.monotonic() < deadline + 20
            time.sleep(0.1)


def runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_this_process_hears_what_was_sent_meanwhile() -> None:
    heard: list[int] = []
    before = signal.signal(signal.SIGUSR1, lambda number, frame: heard.append(number))
    try:
        with deaf_to_signals():
            os.kill(os.getpid(), signal.SIGUSR1)
            child = subprocess.Popen(["sleep", "60"])
        assert heard == [signal.SIGUSR1]
        child.send_signal(signal.SIGTERM)
        time.sleep(0.2)
        assert child.poll() is None
        child.kill()
        child.wait()
    finally:
        signal.signal(signal.SIGUSR1, before)

"""Told to stop, a run saves and exits so that a scheduler starts it again; then it goes on as if nothing had been."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest
from faults.commands import ONE, TWO, alive, children, family, finish, run, start, wait_for_step
from faults.harness import rows


@pytest.mark.faults
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_the_same_command_goes_on_with_the_same_losses(number: signal.Signals, data: Path, tmp_path: Path) -> None:
    arguments = (*ONE, "trainer.max_steps=60", "training.schedule=cosine")
    status, said = run(data, *arguments, f"out={tmp_path}/whole")
    assert status == 0, said
    process = start(data, *arguments, f"out={tmp_path}/run")
    wait_for_step(process, tmp_path / "run", 5)
    process.send_signal(number)
    status, said = finish(process)
    assert status == 75 and number.name in said, said
    assert 5 <= max(rows(tmp_path / "run")) < 60
    status, said = run(data, *arguments, f"out={tmp_path}/run")
    assert status == 0 and "resumed from" in said, said
    assert rows(tmp_path / "run") == rows(tmp_path / "whole")


@pytest.mark.faults
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_to_every_process_of_the_run_stops_it_as_well(number: int, data: Path, tmp_path: Path) -> None:
    """As a scheduler sends it: to data workers, their fork server and W&B's writer too."""
    arguments = (*ONE, "trainer.max_steps=60", "data.workers=2", "logger=default", f"out={tmp_path}/run")
    process = start(data, *arguments)
    wait_for_step(process, tmp_path / "run", 3)
    told = family(process.pid)
    assert len(told) >= 6, "the run, two workers, fork server, resource tracker, writer"
    for pid in told:
        os.kill(pid, number)
    status, said = finish(process, 90)
    assert status == 75 and "saved step" in said and "Traceback" not in said, said
    deadline = time.monotonic() + 300
    while left := [pid for pid in told if alive(pid)]:
        assert time.monotonic() < deadline, left
        time.sleep(0.1)
    status, said = run(data, *arguments)
    assert status == 0 and "resumed from" in said and max(rows(tmp_path / "run")) == 60, said


@pytest.mark.faults
def test_a_signal_in_an_accumulation_waits_for_the_step(data: Path, tmp_path: Path) -> None:
    arguments = (*ONE, "trainer.max_steps=30", "trainer.micro_batch=1")
    status, said = run(data, *arguments, f"out={tmp_path}/whole")
    assert status == 0, said
    process = start(data, *arguments, f"out={tmp_path}/run")
    wait_for_step(process, tmp_path / "run", 4)
    process.send_signal(signal.SIGTERM)
    status, said = finish(process)
    assert status == 75, said
    status, said = run(data, *arguments, f"out={tmp_path}/run")
    assert status == 0 and "resumed from" in said, said
    assert rows(tmp_path / "run") == rows(tmp_path / "whole")


@pytest.mark.faults
@pytest.mark.parametrize("when", ["importing", "building", "resuming"])
def test_before_the_first_step_it_ends_at_once(when: str, data: Path, tmp_path: Path) -> None:
    """Nothing is saved, nothing is lost, and the status is that of a run to be started again."""
    out = tmp_path / "run"
    if when == "resuming":
        assert run(data, *ONE, "trainer.max_steps=2", f"out={out}")[0] == 0
        before = {path: path.read_bytes() for path in (out / "checkpoints").iterdir()}
    process = start(data, *ONE, "trainer.max_steps=4", f"out={out}")
    # As soon as the verb has begun, long before torch is imported; or when the run has its folder.
    deadline = time.monotonic() + 600
    while not (catches(process.pid, signal.SIGTERM) and (when == "importing" or (out / ".lock").exists())):
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.01)
    began = time.monotonic()
    process.send_signal(signal.SIGTERM)
    status, said = finish(process, 60)
    print(f"ended after {time.monotonic() - began:.1f} s")
    assert status == 75 and "nothing is lost" in said and "Traceback" not in said, said
    if when == "resuming":
        assert before == {path: path.read_bytes() for path in (out / "checkpoints").iterdir()}
    status, said = run(data, *ONE, "trainer.max_steps=4", f"out={out}")
    assert status == 0 and max(rows(out)) == 4, said


@pytest.mark.faults
@pytest.mark.parametrize(
    ("held_at", "whom", "saved"),
    [
        ("loss", "other", False),
        ("loss", "both", False),
        ("loss", "first", True),
        ("on_before_optimizer_step", "other", True),
        ("on_before_optimizer_step", "both", True),
    ],
)
def test_around_the_first_step_two_processes_end_together(
    held_at: str, whom: str, saved: bool, data: Path, tmp_path: Path
) -> None:
    """One is held before or behind the first exchange of gradients; the other one is as far as it gets without it.

    Before it nothing can have been done; behind it the first process has done a step, and both save the tenth.
    """
    held, released = tmp_path / "held", tmp_path / "released"
    process = start(
        data, *TWO, "trainer.max_steps=100000", "trainer.log_every_n_steps=50", f"out={tmp_path}/run",
        launcher=(str(Path(__file__).with_name("held_rank.py")),), HELD_AT=held_at, HELD=str(held),
        RELEASED=str(released),
    )  # fmt: skip
    deadline = time.monotonic() + 600
    while not held.exists():
        assert time.monotonic() < deadline and process.poll() is None, finish(process, 1)
        time.sleep(0.05)
    time.sleep(2)  # the first one waits for the other's gradients, of this step or the next
    (other,) = children(process.pid)
    for told in {"first": [process.pid], "other": [other], "both": [process.pid, other]}[whom]:
        os.kill(told, signal.SIGTERM)
    if saved:
        released.touch()
    status, said = finish(process, 60)
    assert status == 75 and "told to stop" in said and "Traceback" not in said, said
    assert ("saved step 10;" in said) == saved, said
    status, said = run(data, *TWO, "trainer.max_steps=12", f"out={tmp_path}/run")
    assert status == 0 and ("resumed from" in said) == saved, said


def catches(pid: int, number: signal.Signals) -> bool:
    """Whether a process has a handler of its own for a signal."""
    status = Path(f"/proc/{pid}/status").read_text()
    mask = next(int(line.split()[1], 16) for line in status.splitlines() if line.startswith("SigCgt:"))
    return bool(mask >> (number - 1) & 1)

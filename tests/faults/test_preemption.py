"""Told to stop, a run saves and exits so that a scheduler starts it again; then it goes on as if nothing had been."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest
from faults.commands import ONE, finish, run, start, wait_for_step
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

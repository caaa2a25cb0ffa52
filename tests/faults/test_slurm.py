"""A sweep's job under SLURM: warned, it saves itself, is queued again, and goes on as if nothing had been."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
import stand_in_slurm
from faults.commands import ONE, finish, run, start, wait_for_step
from faults.harness import rows


@pytest.mark.faults
def test_a_job_that_is_warned_is_queued_again_once_it_is_saved(data: Path, tmp_path: Path) -> None:
    pytest.importorskip("hydra_plugins.hydra_submitit_launcher")
    arguments = (*ONE, "trainer.max_steps=40", "hydra.sweep.subdir=job")
    whole = (*ONE, "trainer.max_steps=40", f"out={tmp_path}/whole")
    status, said = run(data, *whole)
    assert status == 0, said
    found = stand_in_slurm.install(tmp_path / "slurm")
    sweep = tmp_path / "sweep"
    driver = start(data, "--multirun", "hydra/launcher=slurm", *arguments, f"out={sweep}", PATH=found["PATH"])
    wait_for_step(driver, sweep / "job", 4)
    subprocess.run(["scancel", "100", "--signal", "USR2"], env=found, check=True)
    status, said = finish(driver)
    assert status == 0, said
    assert (tmp_path / "slurm" / "restarts").read_text() == "100\n"
    log = (sweep / "job" / "log.txt").read_text()
    assert "told to stop" in log and "resumed from" in log
    assert rows(sweep / "job") == rows(tmp_path / "whole")

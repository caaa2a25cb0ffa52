"""Two real processes: the losses of one, one folder, and an end with a message when one of them dies."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from faults.commands import FAST, ONE, TORCHRUN, TWO, alive, children, finish, run, start, wait_for_step
from faults.harness import rows
from omegaconf import OmegaConf
from tiny_checkpoint import compose_verb

from dit4sr.studies.sweep_job import has_result

pytestmark = pytest.mark.timeout(1500)  # up to six starts of two processes, each of which imports torch


def losses(out: Path) -> dict[int, float]:
    return {step: float(loss) for step, loss in rows(out).items()}


def test_two_processes_give_the_losses_of_one_and_resume(data: Path, tmp_path: Path) -> None:
    """σ and ε follow from a sample's number, so equal losses also mean that every sample is seen once."""
    status, said = run(data, *ONE, "trainer.max_steps=6", f"out={tmp_path}/one")
    assert status == 0, said
    for steps in (3, 6):
        status, said = run(data, *TWO, f"trainer.max_steps={steps}", f"out={tmp_path}/two")
        assert status == 0, said
    assert "resumed from" in said and said.count("dit4sr on nano") == 1
    assert sorted(losses(tmp_path / "two")) == [1, 2, 3, 4, 5, 6]
    assert losses(tmp_path / "two") == pytest.approx(losses(tmp_path / "one"), rel=1e-5)


def test_the_default_folder_is_the_first_process_s(data: Path, tmp_path: Path) -> None:
    """Its name has the time in it, which the other process would read later."""
    status, said = run(data, *TWO, "trainer.max_steps=1", f"paths.outputs={tmp_path}/outputs")
    assert status == 0, said
    assert len(list((tmp_path / "outputs").rglob("last.ckpt"))) == 1
    assert len([path for path in (tmp_path / "outputs").glob("train/*/*")]) == 1


@pytest.mark.faults
def test_torchrun(data: Path, tmp_path: Path) -> None:
    status, said = run(data, *ONE, "trainer.max_steps=3", f"out={tmp_path}/one")
    assert status == 0, said
    status, said = run(data, *TWO, "trainer.max_steps=3", f"out={tmp_path}/two", launcher=TORCHRUN)
    assert status == 0, said
    assert losses(tmp_path / "two") == pytest.approx(losses(tmp_path / "one"), rel=1e-5)
    status, said = run(data, *TWO, "trainer.max_steps=3", launcher=TORCHRUN)
    assert status != 0 and "give out=<folder>" in said


@pytest.mark.faults
def test_the_jobs_of_a_sweep_have_two_processes_each(data: Path, tmp_path: Path) -> None:
    status, said = run(data, *ONE, "model=variant_c", "trainer.max_steps=3", f"out={tmp_path}/one")
    assert status == 0, said
    sweep = (*TWO, "--multirun", "model=dit4sr,variant_c", "trainer.max_steps=3", f"out={tmp_path}/sweep")
    status, said = run(data, *sweep)
    assert status == 0, said
    folders = sorted(path.parent.parent.name for path in tmp_path.glob("sweep/*/checkpoints/last.ckpt"))
    assert folders == ["0_dit4sr", "1_variant_c"]
    assert losses(tmp_path / "sweep" / "1_variant_c") == pytest.approx(losses(tmp_path / "one"), rel=1e-5)
    status, said = run(data, *sweep)
    assert status == 0 and said.count("finished before, kept") == 2, said
    status, said = run(data, *sweep, launcher=TORCHRUN)
    assert status != 0 and "a sweep starts the processes of its jobs itself" in said


@pytest.mark.faults
def test_one_job_of_a_sweep_under_torchrun_has_one_folder_and_is_known_as_finished(data: Path, tmp_path: Path) -> None:
    """As a cluster's script may start it: the job's file, in processes that torchrun starts."""
    folder = tmp_path / "sweep" / "0_dit4sr"
    overrides = (*TWO, "trainer.max_steps=3")
    config = compose_verb("train", *FAST, f"paths.data={data}", *overrides, f"out={folder}")
    plain: dict[str, Any] = OmegaConf.to_container(config, resolve=True)  # type: ignore[assignment]
    folder.mkdir(parents=True)
    OmegaConf.save(OmegaConf.create(plain), folder / "job.yaml")
    command = [sys.executable, *TORCHRUN, "-m", "dit4sr.studies.sweep_job", str(folder / "job.yaml")]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(
        command, env=environment, stdin=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stderr is not None
        said = process.stderr.read()
        assert process.wait(600) == 0, said
    assert sorted(losses(folder)) == [1, 2, 3] and said.count("dit4sr on nano") == 1
    assert len(list((tmp_path / "sweep").rglob("last.ckpt"))) == 1
    assert has_result(folder, plain)
    status, said = run(data, *overrides, f"out={folder}")
    assert status == 0 and "nothing left to train" in said


@pytest.mark.faults
@pytest.mark.parametrize("victim", ["other", "first"])
def test_a_process_that_dies_ends_the_run(victim: str, data: Path, tmp_path: Path) -> None:
    arguments = (*TWO, "trainer.max_steps=100000", "callbacks.checkpoint_every=5", f"out={tmp_path}/run")
    process = start(data, *arguments)
    wait_for_step(process, tmp_path / "run", 7)
    (other,) = children(process.pid)
    began = time.monotonic()
    os.kill(other if victim == "other" else process.pid, signal.SIGKILL)
    status, said = finish(process, 60)  # the pipes close when both have ended
    print(f"ended after {time.monotonic() - began:.1f} s: {[line for line in said.splitlines() if 'error: ' in line]}")
    assert status != 0 and "goes on from its last checkpoint" in said
    assert not alive(other)
    status, said = run(data, *TWO, "trainer.max_steps=11", f"out={tmp_path}/run")
    assert status == 0 and "resumed from" in said, said


@pytest.mark.faults
def test_sigterm_with_two_processes(data: Path, tmp_path: Path) -> None:
    process = start(data, *TWO, "trainer.max_steps=100000", f"out={tmp_path}/run")
    wait_for_step(process, tmp_path / "run", 3)
    process.send_signal(signal.SIGTERM)
    status, said = finish(process, 90)
    assert status == 75 and "saved step" in said, said

"""A sweep that is told to stop: running jobs save themselves, the others do not begin, and the same command goes on."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest
from faults.commands import ONE, finish, run, start, wait_for_step
from faults.harness import rows

from dit4sr.studies.sweep_job import read_record

pytestmark = pytest.mark.faults

JOBLIB = ("hydra/launcher=joblib", "hydra.launcher.n_jobs=2")


def processes_about(folder: Path) -> list[int]:
    """Processes whose command line or environment names a folder, but for this one."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            text = (process / "cmdline").read_bytes()
        except OSError:
            continue
        if str(folder).encode() in text and int(process.name) != os.getpid():
            found.append(int(process.name))
    return found


def is_saved(job: Path) -> bool:
    """Whether a job's record and checkpoint say that it was stopped after the step that its metrics end with."""
    record = read_record(job)
    newest = max(int(path.stem.partition("-")[2]) for path in (job / "checkpoints").glob("step-*.ckpt"))
    return record is not None and record.state == "interrupted" and newest == max(rows(job))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_to_the_sweep_s_process_saves_its_job(number: signal.Signals, data: Path, tmp_path: Path) -> None:
    sweep = tmp_path / "sweep"
    command = (*ONE, "--multirun", "model=dit4sr,variant_c", "trainer.max_steps=60", f"out={sweep}")
    process = start(data, *command)
    wait_for_step(process, sweep / "0_dit4sr", 3)
    process.send_signal(number)
    status, said = finish(process, 60)
    assert status == 75 and f"told to stop ({number.name})" in said and "Traceback" not in said, said
    assert is_saved(sweep / "0_dit4sr") and max(rows(sweep / "0_dit4sr")) < 60
    assert not (sweep / "1_variant_c" / "job.json").exists()
    assert not processes_about(sweep)
    whole = (*ONE, "trainer.max_steps=60", "callbacks.checkpoint_every=60", f"out={tmp_path}/whole")
    for arguments in (command, whole):
        status, said = run(data, *arguments)
        assert status == 0, said
    assert rows(sweep / "0_dit4sr") == rows(tmp_path / "whole")
    records = [read_record(sweep / name) for name in ("0_dit4sr", "1_variant_c")]
    assert [record.state for record in records if record is not None] == ["finished", "finished"]


@pytest.mark.parametrize("whom", ["the sweep's process", "the whole group"])
def test_under_joblib_every_job_that_runs_is_saved_and_no_process_stays(whom: str, data: Path, tmp_path: Path) -> None:
    pytest.importorskip("hydra_plugins.hydra_joblib_launcher")
    sweep = tmp_path / "sweep"
    command = (*ONE, *JOBLIB, "--multirun", "seed=0,1,2", "trainer.max_steps=100000", f"out={sweep}",
               "hydra.sweep.subdir='${seed}'")  # fmt: skip
    process = start(data, *command)
    for job in ("0", "1"):
        wait_for_step(process, sweep / job, 3)
    if whom == "the sweep's process":
        process.send_signal(signal.SIGTERM)
    else:
        os.killpg(process.pid, signal.SIGTERM)
    status, said = finish(process, 90)  # the pipes close when all have ended
    assert status == 75 and "told to stop (SIGTERM)" in said and "Traceback" not in said, said
    assert is_saved(sweep / "0") and is_saved(sweep / "1")
    assert not (sweep / "2" / "job.json").exists()
    assert not processes_about(sweep)


def test_jobs_of_joblib_do_not_outlive_a_sweep_that_is_killed(data: Path, tmp_path: Path) -> None:
    pytest.importorskip("hydra_plugins.hydra_joblib_launcher")
    sweep = tmp_path / "sweep"
    process = start(data, *ONE, *JOBLIB, "--multirun", "seed=0,1", "trainer.max_steps=100000", f"out={sweep}",
                    "hydra.sweep.subdir='${seed}'")  # fmt: skip
    for job in ("0", "1"):
        wait_for_step(process, sweep / job, 3)
    os.kill(process.pid, signal.SIGKILL)
    deadline = time.monotonic() + 300
    while processes_about(sweep):
        assert time.monotonic() < deadline, "a job has outlived its sweep"
        time.sleep(0.2)
    time.sleep(1)  # the worker writes its job's record then
    assert is_saved(sweep / "0") and is_saved(sweep / "1")
    finish(process, 60)


def test_a_search_that_is_told_to_stop_goes_on_with_the_same_trial(data: Path, tmp_path: Path) -> None:
    pytest.importorskip("optuna")
    out = tmp_path / "search"
    folders: list[Path] = []
    for call in range(2):
        reached = max(rows(folders[0])) if folders else 0
        process = start(
            data, *ONE, "trainer.max_steps=100000", "trials=2", f"out={out}",
            program=("-m", "dit4sr.studies.sweep_search"),
        )  # fmt: skip
        deadline = time.monotonic() + 600
        while not (folders := list(out.glob("trial-*"))) or max(rows(folders[0]), default=0) < reached + 3:
            assert time.monotonic() < deadline and process.poll() is None, finish(process, 1)
            time.sleep(0.1)
        process.send_signal(signal.SIGTERM)
        status, said = finish(process, 60)
        assert status == 75 and "Traceback" not in said and ("goes on" in said.splitlines()[1]) == bool(call), said
        assert len(folders) == 1 and is_saved(folders[0])
    assert not processes_about(out)

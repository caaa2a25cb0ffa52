"""A sweep's jobs: which is known again, what a failed or interrupted one leaves, and how one ends with its sweep."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf
from tiny_checkpoint import TINY, compose_verb

from dit4sr.studies.sweep_job import EVALUATED, LOG, Record, config_hash, decisive, read_record, run_job, write_record


def job_config(**changes: Any) -> dict[str, Any]:
    composed = compose_verb("train", *TINY, "experiment=ablation", "out=unused", "logger=csv", "callbacks=none")
    for name, value in changes.items():
        OmegaConf.update(composed, name.replace("__", "."), value)
    return OmegaConf.to_container(composed, resolve=True)  # type: ignore[return-value]


def test_a_job_is_known_by_what_decides_its_result() -> None:
    config = job_config()
    same = [job_config(out="elsewhere"), job_config(logger__csv=False), job_config(callbacks__progress=False)]
    other = [job_config(seed=1), job_config(training__learning_rate=1e-5), job_config(sampler__steps=3)]
    assert {config_hash(c) for c in same} == {config_hash(config)}
    assert config_hash(config) not in {config_hash(c) for c in other} and len({config_hash(c) for c in other}) == 3
    assert "model.lr_attention" in decisive(config) and "logger.csv" not in decisive(config)


def test_a_failing_job_leaves_its_reason_and_its_log(tmp_path: Path) -> None:
    folder = tmp_path / "dit4sr-seed0"
    config = job_config(out=str(folder), resume=str(tmp_path / "nowhere.ckpt"), trainer__max_steps=1)
    assert run_job(config, folder) == 1
    record = read_record(folder)
    assert record is not None and record.state == "failed" and "there is no such checkpoint" in record.reason
    assert "nowhere.ckpt" in (folder / LOG).read_text() and "Traceback" not in (folder / LOG).read_text()


def test_a_finished_job_is_kept_and_another_config_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, config = tmp_path / "job", job_config(resume="nowhere.ckpt")  # run again, it would fail
    (folder / EVALUATED).parent.mkdir(parents=True)
    (folder / EVALUATED).write_text("{}")
    (folder / "checkpoints").mkdir()
    (folder / "checkpoints" / "last.ckpt").write_bytes(b"")
    (folder / "job.yaml").write_text(OmegaConf.to_yaml(OmegaConf.create(config)))
    write_record(folder, Record("finished", config_hash(config), "dit4sr", 0))
    assert run_job(config, folder) == 0 and "kept" in capsys.readouterr().err
    assert run_job(job_config(training__learning_rate=0.5), folder) == 1
    assert "training.learning_rate 0.003 → 0.5" in capsys.readouterr().err
    older = {**config, "training": {k: v for k, v in config["training"].items() if k != "weight_decay"}}
    (folder / "job.yaml").write_text(OmegaConf.to_yaml(OmegaConf.create(older)))
    write_record(folder, Record("finished", config_hash(older), "dit4sr", 0))
    assert run_job(config, folder) == 0 and "kept" in capsys.readouterr().err  # of before there was such a setting
    (folder / "job.yaml").unlink()
    assert run_job(config, folder) == 1 and "job.yaml is not readable" in capsys.readouterr().err
    (folder / "job.yaml").write_text(OmegaConf.to_yaml(OmegaConf.create(older)))
    assert run_job({**config, "resume": "nowhere.ckpt", "sampler": {**config["sampler"], "steps": 3}}, folder) == 1
    assert "sampler.steps" in capsys.readouterr().err  # a table holds one sampler
    (folder / EVALUATED).unlink()  # the result is gone: it runs, and fails here
    assert run_job(config, folder) == 1 and not (folder / EVALUATED).is_file()


def test_where_the_evaluation_failed_another_one_needs_no_training(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, config = tmp_path / "job", job_config(resume="nowhere.ckpt")
    (folder / "checkpoints").mkdir(parents=True)
    (folder / "checkpoints" / "last.ckpt").write_bytes(b"")
    (folder / "job.yaml").write_text(OmegaConf.to_yaml(OmegaConf.create(config)))
    write_record(folder, Record("failed", config_hash(config), "dit4sr", 0, reason="no such benchmark"))
    assert run_job(job_config(resume="nowhere.ckpt", sampler__steps=3, benchmark__count=None), folder) == 1
    assert "goes on" in capsys.readouterr().err  # and fails here for want of the checkpoint
    assert run_job(job_config(resume="nowhere.ckpt", training__learning_rate=0.5), folder) == 1
    assert "another config" in capsys.readouterr().err


def test_a_job_ends_with_its_sweep(tmp_path: Path) -> None:
    """Killed without warning, a sweep leaves no job behind."""
    program = (
        "import time\nfrom dit4sr.studies.sweep_process import ends_with_its_sweep\n"
        "with ends_with_its_sweep():\n    print('ready', flush=True)\n    time.sleep(100)"
    )
    parent = (
        "import subprocess, sys, time\n"
        f"p = subprocess.Popen([sys.executable, '-c', {program!r}], stdin=subprocess.PIPE, stdout=subprocess.PIPE)\n"
        "p.stdout.readline()\nprint(p.pid, flush=True)\ntime.sleep(100)"
    )
    process = subprocess.Popen([sys.executable, "-c", parent], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    job = int(process.stdout.readline())
    process.send_signal(signal.SIGKILL)
    process.wait()
    deadline = time.monotonic() + 300
    while alive(job):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (ProcessLookupError, FileNotFoundError):
        return False

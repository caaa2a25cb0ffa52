"""A search for hyper-parameters that is killed goes on with the trial that it was at."""

from __future__ import annotations

import csv
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from tiny_checkpoint import TINY

from dit4sr.studies.sweep_job import read_record

TRAINING = (
    *("training.steps=40", "training.warmup_steps=2", "data.batch_size=2", "data.workers=0"),
    *("callbacks.checkpoint_every=2", "sampler.steps=1", "trainer.accelerator=cpu"),
)


@pytest.mark.slow
def test_a_killed_search_goes_on(tmp_path: Path) -> None:
    pytest.importorskip("optuna")
    out = tmp_path / "search"
    command = [sys.executable, "-m", "dit4sr.studies.sweep_search", "trials=2", f"out={out}", *TINY, *TRAINING]
    command.append(f"paths.data={tmp_path / 'data'}")
    first = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 600
    while not (checkpoints := list(out.glob("trial-*/checkpoints/*.ckpt"))):
        assert time.monotonic() < deadline and first.poll() is None
        time.sleep(0.02)
    os.kill(first.pid, signal.SIGKILL)
    first.wait()
    trial = checkpoints[0].parents[1]
    while job := processes_of(trial):  # it saves itself and ends, although nobody waits for it
        assert time.monotonic() < deadline, f"{job} outlives the search"
        time.sleep(0.1)

    done = subprocess.run(command, capture_output=True, text=True, timeout=800, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert f"{trial.name}: goes on" in done.stderr
    record = read_record(trial)
    assert record is not None and record.state == "finished"
    with (out / "trials.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["state"] for row in rows] == ["FAIL", "COMPLETE", "COMPLETE"]
    values = [{k: v for k, v in row.items() if k not in ("trial", "state", "value")} for row in rows]
    assert values[0] == values[1] != values[2]


def processes_of(folder: Path) -> list[int]:
    """Processes whose command line names the folder."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            text = path.read_bytes()
        except OSError:
            continue
        if os.fsencode(folder) in text:
            found.append(int(path.parent.name))
    return found

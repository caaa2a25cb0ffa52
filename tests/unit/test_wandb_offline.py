"""An offline W&B run holds all that a run logs: its file is read back record by record, by wandb's own messages."""

from __future__ import annotations

import csv
import json
import os
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from wandb.proto import wandb_internal_pb2

from dit4sr.training.logging import MetricsCSV, WandbSteps, wandb_logger

SETTINGS = {
    "mode": "offline",
    "project": "dit4sr",
    "group": "ablation",
    "job_type": "train",
    "tags": ["ablation", "variant_a"],
    "name": "variant_a-seed0",
    "log_model": True,
}
BLOCK, HEADER, MAGIC = 32768, 7, 7


def records(path: Path) -> Iterator[Any]:
    """The records of a ``.wandb`` file: LevelDB's log format (blocks of 32 KiB; a record's parts are full, first,
    middle, last), behind seven bytes that name it."""
    data, at, parts = path.read_bytes(), MAGIC, b""
    assert data.startswith(b":W&B")
    while at + HEADER <= len(data):
        if BLOCK - at % BLOCK < HEADER:
            at += BLOCK - at % BLOCK
            continue
        _, length, kind = struct.unpack("<IHB", data[at : at + HEADER])
        parts += data[at + HEADER : at + HEADER + length]
        at += HEADER + length
        if kind in (1, 4):
            record = wandb_internal_pb2.Record()
            record.ParseFromString(parts)
            yield record
            parts = b""


def key(item: Any) -> str:
    return item.key or ".".join(item.nested_key)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("WANDB_SILENT", "true")
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "last.ckpt").write_bytes(b"weights")
    logger = wandb_logger(SETTINGS, tmp_path, {"model": {"name": "variant_a", "lr_attention": "separate"}}, "abc123")
    assert isinstance(logger, WandbSteps)
    rows = MetricsCSV(tmp_path / "metrics.csv")
    for step in (10, 20):
        for metrics in ({"train/loss": 1 / step, "epoch": 0}, {"speed/samples_per_second": 3.0 * step}):
            logger.log_metrics(metrics, step)
            rows.log_metrics(metrics, step)
    pictures = [np.full((8, 8, 3), v, np.uint8) for v in (0, 100, 200)]
    logger.log_image("val/pictures", pictures, 20, caption=["0: LR", "0: restored", "0: HR"])
    logger.finalize("success")
    logger.experiment.finish()
    (file,) = tmp_path.glob("wandb/offline-run-*/run-abc123.wandb")
    deadline = time.monotonic() + 300  # W&B's own process writes the end of the file after the run is finished
    while not any(r.HasField("exit") for r in records(file)) and time.monotonic() < deadline:
        time.sleep(0.1)
    return tmp_path


def test_every_metric_and_picture_is_in_the_file(folder: Path) -> None:
    (file,) = folder.glob("wandb/offline-run-*/run-abc123.wandb")
    found = list(records(file))
    run = next(r.run for r in found if r.HasField("run"))
    assert (run.project, run.run_group, run.job_type, run.display_name) == (
        "dit4sr",
        "ablation",
        "train",
        "variant_a-seed0",
    )
    assert set(run.tags) == {"ablation", "variant_a"}
    config = {key(u): json.loads(u.value_json) for u in run.config.update}
    assert config["model"] == {"name": "variant_a", "lr_attention": "separate"} and config["revision"]

    axes = {m.glob_name or m.name: m.step_metric for m in (r.metric for r in found if r.HasField("metric"))}
    assert axes["*"] == "step" and not any("global_step" in name for name in axes)
    history = [{key(i): json.loads(i.value_json) for i in r.history.item} for r in found if r.HasField("history")]
    logged = {(row["step"], name): value for row in history for name, value in row.items() if name != "step"}
    with (folder / "metrics.csv").open(newline="") as stream:
        for row in csv.DictReader(stream):
            for name, value in row.items():
                if name != "step" and value:
                    assert logged[int(row["step"]), name] == float(value)
    assert logged[20, "val/pictures.captions"] == ["0: LR", "0: restored", "0: HR"]
    files = [f.path for r in found if r.HasField("files") for f in r.files.files]
    assert sorted(p for p in files if p.endswith(".png")) == sorted(logged[20, "val/pictures.filenames"])
    assert len(logged[20, "val/pictures.filenames"]) == 3
    assert all((file.parent / "files" / path).is_file() for path in files if path.endswith(".png"))
    assert any(r.HasField("artifact") or r.request.HasField("log_artifact") for r in found)


WRITER_KILLED = """
import os, signal, sys
from pathlib import Path
from dit4sr.training.logging import close_wandb, wandb_logger

settings = {"mode": "offline", "project": "p", "group": None, "job_type": None, "tags": [], "name": None}
logger = wandb_logger({**settings, "log_model": True}, Path(sys.argv[1]), {}, "abc123")
logger.log_metrics({"train/loss": 1.0}, 1)
for child in Path(f"/proc/{os.getpid()}/task/{os.getpid()}/children").read_text().split():
    if b"wandb-core" in Path(f"/proc/{child}/cmdline").read_bytes():
        os.kill(int(child), signal.SIGKILL)
        print("killed", flush=True)
for step in range(2, 50):
    logger.log_metrics({"train/loss": 1.0}, step)
logger.finalize("success")
close_wandb()
print("done", flush=True)
sys.exit(75)
"""


def test_a_run_goes_on_when_wandb_s_writer_is_killed(tmp_path: Path) -> None:
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "last.ckpt").write_bytes(b"weights")
    # A writer of its own, not the one that an earlier test's run in this process left its address of.
    environment = {name: value for name, value in os.environ.items() if name != "WANDB_SERVICE"}
    environment["WANDB_SILENT"] = "true"
    command = [sys.executable, "-c", WRITER_KILLED, str(tmp_path)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=600)
    assert done.stdout.split() == ["killed", "done"] and done.returncode == 75, done.stderr
    assert "Traceback" not in done.stderr and "warning: " in done.stderr

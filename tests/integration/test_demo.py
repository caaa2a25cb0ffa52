"""The demo, in miniature: the verbs one after the other, the table, the picture, what to try next."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

from PIL import Image


def test_the_demo_trains_evaluates_and_says_what_to_look_at(tmp_path: Path) -> None:
    environment = {**os.environ, "DIT4SR_DATA": str(tmp_path / "data"), "WANDB_MODE": "offline"}
    done = subprocess.run(
        [sys.executable, "-m", "dit4sr.studies.demo", "--quick", "--out", "demo", "trainer.accelerator=cpu"],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=800,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    evaluation = tmp_path / "demo" / "evaluation"
    with (evaluation / "per_image.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert {row["method"] for row in rows} == {"bicubic", "dit4sr", "dit4sr (mean of 2)", "dit4sr (shuffled LR)"}
    assert {row["metric"] for row in rows} == {"psnr", "ssim", "gradient_energy"}
    assert {(row["channel"], row["border"], row["protocol"]) for row in rows} == {("Y", "0", "ycbcr")}
    held_out = {row["image"].rsplit("_", 1)[0] for row in rows}
    assert held_out == {"chelsea", "coffee", "rocket"}
    manifest = json.loads((tmp_path / "data" / "embedded" / "train" / "manifest.json").read_text())
    assert not held_out & {source["name"] for source in manifest["sources"]}
    assert Image.open(evaluation / "comparison.png").width > 800
    for word in ("bicubic", "mean of 2", "shuffled LR", "demo/evaluation/comparison.png", "What to try next"):
        assert word in done.stdout
    assert (tmp_path / "demo" / "train" / "wandb").is_dir()

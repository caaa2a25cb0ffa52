"""The recipe for small devices: latents and embedded prompts are made once, then trained on by a memory preset."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from tiny_checkpoint import TINY
from tiny_training import SHORT, rows_of

from dit4sr.cli import main
from dit4sr.models.checkpoint import read_checkpoint

TEXT = [setting for setting in TINY if ".text_encoder." in setting]


def test_latents_are_prepared_trained_on_and_the_result_is_evaluated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("bitsandbytes")
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")
    places = [f"paths.data={tmp_path / 'data'}", f"paths.cache={tmp_path / 'cache'}"]

    def run(verb: str, *arguments: str) -> None:
        monkeypatch.setattr(sys, "argv", [f"{verb}.py", *arguments, *places])
        assert main(verb) == 0

    drawn = [tmp_path / "draws" / str(seed) for seed in range(2)]
    for seed, folder in enumerate(drawn):
        run("prepare", "content=paired_latent", "embed_prompts=true", "patches_per_photo=8", "backbone=nano", *TEXT,
            f"seed={seed}", f"out={folder}")  # fmt: skip
    sources = ",".join(f"{{name: draw{n}, shards: {folder / 'train'}, weight: 1}}" for n, folder in enumerate(drawn))
    recipe = [*SHORT, "data=paired_latent", f"data.sources=[{sources}]", "trainer/memory=16gb"]
    for name, steps in (("whole", 4), ("parts", 2), ("parts", 4)):
        run("train", *recipe, f"trainer.max_steps={steps}", f"out={tmp_path / name}")
    checkpoint = read_checkpoint(tmp_path / "whole" / "checkpoints" / "last.ckpt")
    training = checkpoint["dit4sr"]["training"]
    assert training["optimizer"] == "adamw8bit" and training["gradient_checkpointing"]
    losses = [[row["train/loss"] for row in rows_of(tmp_path / name, "train/loss")] for name in ("whole", "parts")]
    assert losses[0] == losses[1] and len(losses[0]) == 4  # 8-bit moments go on bit for bit too
    assert {"data/share/draw0", "data/share/draw1"} <= set(rows_of(tmp_path / "whole", "step")[-1])
    run("evaluate", f"ckpt={tmp_path / 'whole'}", "benchmark.count=null", "metrics.names=[psnr]", "pictures=1",
        "device=cpu", "sampler.steps=1", f"out={tmp_path / 'evaluation'}")  # fmt: skip
    assert (tmp_path / "evaluation" / "summary.json").is_file()

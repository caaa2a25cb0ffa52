"""A run killed at random moments gives the losses and weights of the run that was never interrupted, bit for bit."""

from __future__ import annotations

import os
import random
import signal
import time
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest
import torch
from faults.harness import kill_when, rows, start, train_with_kills
from omegaconf import DictConfig
from tiny_checkpoint import TINY, compose_verb

from dit4sr.training.checkpoint_files import newest_valid, step_files


def configure(data: Path, workers: int, steps: int, every: int, *overrides: str) -> DictConfig:
    return compose_verb(
        "train", *TINY, "backbone.crop=32", "backbone.tile.size=8", "backbone.tile.overlap=2",
        "training.batch_size=4", "training.warmup_steps=2", f"data.workers={workers}", f"paths.data={data}",
        "trainer.accelerator=cpu", "trainer.devices=1", "trainer.log_every_n_steps=1", "callbacks=none",
        "callbacks.progress=false", "logger=csv", "out=unused", f"trainer.max_steps={steps}",
        f"callbacks.checkpoint_every={every}", "callbacks.keep_last=2",
        *overrides,
    )  # fmt: skip


def compare(whole: Path, killed: Path, steps: int) -> None:
    assert rows(whole) == rows(killed) and sorted(rows(whole)) == list(range(1, steps + 1))
    one, two = (
        torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True, map_location="cpu")
        for folder in (whole, killed)
    )
    for part in ("state_dict", "ema"):
        assert one[part].keys() == two[part].keys()
        for name, value in one[part].items():
            assert torch.equal(value, two[part][name]), name
    assert str(one["optimizer_states"]) == str(two["optimizer_states"])
    assert one["lr_schedulers"] == two["lr_schedulers"]


@pytest.mark.timeout(900)
@pytest.mark.parametrize(("workers", "kills"), [(0, 2), pytest.param(0, 20, marks=pytest.mark.faults),
                                                pytest.param(2, 20, marks=pytest.mark.faults)])  # fmt: skip
def test_a_killed_run_goes_on_bit_for_bit(workers: int, kills: int, data: Path, tmp_path: Path) -> None:
    """Checkpoints every 7 steps, kills at random ones."""
    steps = 20 * kills if kills < 10 else 6 * kills
    config = configure(data, workers, steps, 7)
    process = start(config, tmp_path / "whole")
    process.join(600)
    assert process.exitcode == 0, (tmp_path / "whole.log").read_text()[-3000:]
    killed_at = train_with_kills(config, tmp_path / "killed", kills, random.Random(kills + workers))
    assert len(killed_at) == kills
    print("killed after steps", killed_at)
    assert any(step % 7 for step in killed_at)
    compare(tmp_path / "whole", tmp_path / "killed", steps)


WIDER = ("backbone.transformer.num_attention_heads=4", "backbone.transformer.attention_head_dim=32",
         "backbone.transformer.caption_projection_dim=128")  # fmt: skip
"""So that writing a checkpoint takes long enough to be hit."""


def kill_in_saving(process: BaseProcess, folder: Path, delay: float) -> None:
    """SIGKILL ``delay`` seconds after a checkpoint that is being written is seen."""
    before = set(os.listdir(folder))
    while process.is_alive() and not any(n.startswith(".step-") and n not in before for n in os.listdir(folder)):
        time.sleep(0.0005)
    time.sleep(delay)
    if process.is_alive() and process.pid is not None:
        os.killpg(process.pid, signal.SIGKILL)
    process.join()


@pytest.mark.faults
@pytest.mark.timeout(1500)
def test_killed_inside_saving(data: Path, tmp_path: Path) -> None:
    """A checkpoint every step; of 50 kills, most as soon as one is being written. What is there is always whole."""
    steps = 120
    config = configure(data, 0, steps, 1, *WIDER)
    out = tmp_path / "killed"
    rng, folder, partial = random.Random(1), out / "checkpoints", 0
    for kill in range(50):
        process = start(config, out)
        if kill % 5 == 0:  # at any moment; the first one lets a checkpoint be made: a step's row is written before it
            kill_when(process, out, max(rows(out), default=0) + (kill == 0) + rng.randint(1, 3), rng.random() * 0.02)
        else:
            kill_in_saving(process, folder, rng.random() * 0.01)
        partial += any(path.name.startswith(".step-") for path in folder.iterdir())
        newest = newest_valid(folder)
        assert newest is not None and newest == step_files(folder)[0]
    print(f"{partial} of 50 kills left a checkpoint half written; killed up to step {max(rows(out))}")
    assert partial > 0, "no kill fell into a saving: make the network wider"
    for name in ("whole", "killed"):
        process = start(config, tmp_path / name)
        process.join(600)
        assert process.exitcode == 0
    assert not [path for path in folder.iterdir() if path.name.startswith(".")]
    compare(tmp_path / "whole", tmp_path / "killed", steps)

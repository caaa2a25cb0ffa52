"""A run killed at random moments gives the losses and weights of the run that was never interrupted, bit for bit."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import torch
from faults.harness import rows, start, train_with_kills
from tiny_checkpoint import TINY, compose_verb

from dit4sr.data.prepare import ensure_embedded
from dit4sr.training.checkpoint_files import newest_valid, step_files


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    ensure_embedded(folder)
    return folder


def configure(data: Path, workers: int, steps: int, every: int) -> object:
    return compose_verb(
        "train", *TINY, "backbone.crop=32", "backbone.tile.size=8", "backbone.tile.overlap=2",
        "training.batch_size=4", "training.warmup_steps=2", f"data.workers={workers}", f"paths.data={data}",
        "trainer.accelerator=cpu", "trainer.devices=1", "trainer.log_every_n_steps=1", "callbacks=none",
        "callbacks.progress=false", "logger=csv", "out=unused", f"trainer.max_steps={steps}",
        f"callbacks.checkpoint_every={every}", "callbacks.keep_last=2",
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


@pytest.mark.parametrize(("workers", "kills"), [(0, 2), pytest.param(0, 20, marks=pytest.mark.faults),
                                                pytest.param(2, 20, marks=pytest.mark.faults)])  # fmt: skip
def test_a_killed_run_goes_on_bit_for_bit(workers: int, kills: int, data: Path, tmp_path: Path) -> None:
    """Checkpoints every 7 steps, kills at random ones."""
    steps = 20 * kills if kills < 10 else 6 * kills
    config = configure(data, workers, steps, 7)
    process = start(config, tmp_path / "whole")
    process.join(300)
    assert process.exitcode == 0, (tmp_path / "whole.log").read_text()[-3000:]
    killed_at = train_with_kills(config, tmp_path / "killed", kills, random.Random(kills + workers))
    assert len(killed_at) == kills
    print("killed after steps", killed_at)
    assert any(step % 7 for step in killed_at)
    compare(tmp_path / "whole", tmp_path / "killed", steps)


@pytest.mark.faults
def test_killed_inside_saving(data: Path, tmp_path: Path) -> None:
    """A checkpoint every step, so many of the 50 kills fall into the writing of one; what is there is always whole."""
    config = configure(data, 0, 400, 1)
    process = start(config, tmp_path / "whole")
    process.join(300)
    rng, folder, partial = random.Random(1), tmp_path / "killed" / "checkpoints", 0
    for _ in range(50):
        process = start(config, tmp_path / "killed")
        from faults.harness import kill_when

        kill_when(process, tmp_path / "killed", max(rows(tmp_path / "killed"), default=0) + rng.randint(1, 6),
                  rng.random() * 0.02)  # fmt: skip
        partial += any(path.name.startswith(".step") for path in folder.glob(".*"))
        assert newest_valid(folder) is not None and all(newest_valid(folder) == p for p in step_files(folder)[:1])
    assert partial > 0, "no kill fell into a saving: make the model larger"
    print(f"{partial} of 50 kills fell into a saving")
    process = start(config, tmp_path / "killed")
    process.join(300)
    compare(tmp_path / "whole", tmp_path / "killed", 400)

"""Going on with a run: what may change, what may not, and what stays."""

from __future__ import annotations

import csv
import shutil
from pathlib import Path

import pytest
from omegaconf import DictConfig
from tiny_checkpoint import TINY, compose_verb

from dit4sr.data.prepare import ensure_embedded
from dit4sr.errors import UserError
from dit4sr.models.checkpoint import read_checkpoint
from dit4sr.training.distributed import count_devices
from dit4sr.training.memory import micro_batch
from dit4sr.training.run import train


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    ensure_embedded(folder)
    return folder


def config_of(data: Path, *overrides: str) -> DictConfig:
    return compose_verb(
        "train", *TINY, "backbone.transformer.num_layers=1", "backbone.crop=32", "backbone.tile.size=8",
        "backbone.tile.overlap=2", "training.batch_size=4", "training.warmup_steps=2", "training.schedule=constant",
        "data.workers=0", "trainer=cpu", "trainer.log_every_n_steps=1", "callbacks=none", "callbacks.progress=false",
        "logger=csv", f"paths.data={data}", "out=unused", *overrides,
    )  # fmt: skip


def losses(out: Path) -> list[float]:
    with (out / "metrics.csv").open(newline="") as file:
        return [float(row["train/loss"]) for row in csv.DictReader(file) if row["train/loss"]]


@pytest.fixture(scope="module")
def begun(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two steps."""
    out = tmp_path_factory.mktemp("begun") / "run"
    train(config_of(data, "trainer.max_steps=2"), out)
    return out


@pytest.fixture
def run(begun: Path, tmp_path: Path) -> Path:
    """The same run, moved to another folder."""
    return Path(shutil.copytree(begun, tmp_path / "moved"))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("seed=5", "seed: 0 → 5"),
        ("training.batch_size=8", "data.batch_size: 4 → 8"),
        ("data.lanes=8", "data.lanes: 16 → 8"),
        ("data.order=sequential", "data.order: shuffled → sequential"),
    ],
)
def test_another_stream_is_refused(change: str, words: str, data: Path, run: Path) -> None:
    with pytest.raises(UserError, match="another stream of samples") as caught:
        train(config_of(data, "trainer.max_steps=3", change), run)
    assert words in str(caught.value) and "resume_changes=true" in str(caught.value)
    assert len(losses(run)) == 2


def test_unless_it_is_asked_for(data: Path, run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train(config_of(data, "trainer.max_steps=3", "seed=5", "resume_changes=true"), run)
    assert "seed: 0 → 5" in capsys.readouterr().err and len(losses(run)) == 3


def test_another_optimiser_is_refused_in_any_case(data: Path, run: Path) -> None:
    with pytest.raises(UserError, match="another optimiser"):
        train(config_of(data, "trainer.max_steps=3", "training.optimizer=adamw", "resume_changes=true"), run)


def test_other_changes_are_named(data: Path, run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train(config_of(data, "trainer.max_steps=3", "degradation=light", "training.learning_rate=1e-9"), run)
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("warning: going on")]
    assert len(lines) == 1 and "degradation.name: dit4sr → light" in lines[0]
    assert "training.learning_rate: the checkpoint's stay" in lines[0]


def test_what_changes_nothing_is_not_mentioned(data: Path, run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train(config_of(data, "trainer.max_steps=3", "data.workers=1", "training.gradient_checkpointing=true"), run)
    assert "warning" not in capsys.readouterr().err


def test_the_wandb_id_is_the_run_s_wherever_it_lies(data: Path, begun: Path, run: Path, tmp_path: Path) -> None:
    first = read_checkpoint(begun / "checkpoints" / "last.ckpt")["dit4sr"]["run_id"]
    train(config_of(data, "trainer.max_steps=3"), run)
    assert read_checkpoint(run / "checkpoints" / "last.ckpt")["dit4sr"]["run_id"] == first
    train(config_of(data, "trainer.max_steps=1", "resume=never"), tmp_path / "other")
    assert read_checkpoint(tmp_path / "other" / "checkpoints" / "last.ckpt")["dit4sr"]["run_id"] != first


def test_a_micro_batch_changes_memory_alone(data: Path, tmp_path: Path) -> None:
    train(config_of(data, "trainer.max_steps=2"), tmp_path / "whole")
    train(config_of(data, "trainer.max_steps=2", "trainer.micro_batch=1"), tmp_path / "parts")
    one, two = (read_checkpoint(tmp_path / n / "checkpoints" / "last.ckpt") for n in ("whole", "parts"))
    assert one["global_step"] == two["global_step"] == 2
    largest = max(float((one["ema"][n] - two["ema"][n]).abs().max()) for n in one["ema"])
    assert largest < 1e-3  # a step is 1.5e-3
    assert losses(tmp_path / "parts") == pytest.approx(losses(tmp_path / "whole"), rel=1e-3)
    assert len(losses(tmp_path / "parts")) == 2


@pytest.mark.parametrize(("preset", "samples"), [("24gb", 1), ("40gb", 4), ("80gb", 8)])
def test_memory_presets(preset: str, samples: int) -> None:
    config = compose_verb("train", "experiment=paper", f"trainer/memory={preset}", "out=unused")
    assert config.training.gradient_checkpointing and config.prompt.encoding == "cached"
    assert config.data.batch_size == 64 and micro_batch(config, 8) == samples
    assert (config.training.optimizer == "adamw8bit") == (preset == "24gb")


@pytest.mark.parametrize(
    ("accelerator", "devices", "count"),
    [("cpu", 2, 2), ("cpu", "2", 2), ("cpu", "auto", 1), ("gpu", "0,3", 2), ("gpu", [1, 2, 5], 3)],
)
def test_devices_are_counted(accelerator: str, devices: object, count: int) -> None:
    assert count_devices(accelerator, devices) == count

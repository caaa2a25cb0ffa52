"""Going on with a run: what may change, what may not, and what stays."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import lightning
import pytest
from tiny_checkpoint import compose_verb
from tiny_training import config_of, rows_of

from dit4sr.errors import UserError
from dit4sr.models.checkpoint import read_checkpoint
from dit4sr.training.distributed import count_devices
from dit4sr.training.memory import micro_batch
from dit4sr.training.resuming import check_same_run
from dit4sr.training.run import train


def losses(out: Path) -> list[float]:
    return [float(row["train/loss"]) for row in rows_of(out, "train/loss")]


@pytest.fixture(scope="module")
def begun(embedded: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two steps."""
    out = tmp_path_factory.mktemp("begun") / "run"
    train(config_of(embedded, "trainer.max_steps=2"), out)
    return out


@pytest.fixture
def run(begun: Path, tmp_path: Path) -> Path:
    """The same run, moved to another folder."""
    return Path(shutil.copytree(begun, tmp_path / "moved"))


def test_a_step_s_loss_is_written_before_its_checkpoint(
    embedded: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So that a run that is killed after saving has no gap in its losses."""
    seen: list[tuple[int, str]] = []
    save = lightning.Trainer.save_checkpoint

    def look(trainer: lightning.Trainer, *arguments: Any, **options: Any) -> None:
        last = rows_of(tmp_path, "train/loss")[-1]
        seen.append((trainer.global_step, last["train/loss"]))
        assert int(last["step"]) == trainer.global_step
        save(trainer, *arguments, **options)

    monkeypatch.setattr(lightning.Trainer, "save_checkpoint", look)
    train(config_of(embedded, "callbacks.checkpoint_every=2"), tmp_path)
    rows = {int(row["step"]): row["train/loss"] for row in rows_of(tmp_path, "train/loss")}
    assert seen == [(2, rows[2]), (4, rows[4])]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("seed=5", "seed: 0 → 5"),
        ("training.batch_size=8", "data.batch_size: 4 → 8"),
        ("data.lanes=8", "data.lanes: 16 → 8"),
        ("data.order=sequential", "data.order: shuffled → sequential"),
    ],
)
def test_another_stream_is_refused(change: str, words: str, embedded: Path, run: Path) -> None:
    with pytest.raises(UserError, match="another stream of samples") as caught:
        train(config_of(embedded, "trainer.max_steps=3", change), run)
    assert words in str(caught.value) and "resume_changes=true" in str(caught.value)
    assert len(losses(run)) == 2


def test_unless_it_is_asked_for(embedded: Path, run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train(config_of(embedded, "trainer.max_steps=3", "seed=5", "resume_changes=true"), run)
    assert "seed: 0 → 5" in capsys.readouterr().err and len(losses(run)) == 3


def test_another_optimiser_is_refused_in_any_case(embedded: Path, run: Path) -> None:
    with pytest.raises(UserError, match="another optimiser"):
        train(config_of(embedded, "trainer.max_steps=3", "training.optimizer=adamw", "resume_changes=true"), run)


CHANGES = ("degradation=light", "training.learning_rate=1e-9", "training.weight_decay=0.5")


def test_another_recipe_is_refused_in_one_line(embedded: Path, run: Path) -> None:
    with pytest.raises(UserError, match="with another recipe") as caught:
        train(config_of(embedded, "trainer.max_steps=3", *CHANGES), run)
    line = str(caught.value)
    assert "\n" not in line and "degradation.name: dit4sr → light" in line and "resume_changes=true" in line
    assert "training.learning_rate: 0.003 → 1e-09" in line and "training.weight_decay: 0.01 → 0.5" in line
    assert len(losses(run)) == 2


def test_and_applied_where_it_is_asked_for(embedded: Path, run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A rate of 1e-9 leaves the weights where they were; the restored state alone would go on at 3e-3."""
    before = read_checkpoint(run / "checkpoints" / "last.ckpt")
    train(config_of(embedded, "trainer.max_steps=3", *CHANGES, "resume_changes=true"), run)
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("warning: going on")]
    assert len(lines) == 1 and "degradation.name: dit4sr → light" in lines[0]
    after = read_checkpoint(run / "checkpoints" / "last.ckpt")
    moved = max(float((after["state_dict"][n] - before["state_dict"][n]).abs().max()) for n in before["state_dict"])
    assert 0 < moved < 1e-6, "a step at the old rate is 3e-3"
    groups = [group for part in after["optimizer_states"][0]["parts"] for group in part["param_groups"]]
    assert {(group["lr"], group["initial_lr"], group["weight_decay"]) for group in groups} == {(1e-9, 1e-9, 0.5)}
    assert set(after["lr_schedulers"][0]["base_lrs"]) == {1e-9}
    train(config_of(embedded, "trainer.max_steps=4", *CHANGES), run)  # from now on this is the run's recipe


def test_another_length_of_a_cosine_is_named(
    embedded: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train(config_of(embedded, "trainer.max_steps=1", "training.schedule=cosine"), tmp_path / "run")
    train(config_of(embedded, "trainer.max_steps=2", "training.schedule=cosine"), tmp_path / "run")
    assert "steps of the cosine schedule: 1 → 2" in capsys.readouterr().err


def test_data_that_were_moved_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    saved = {"training": {"schedule": "constant"}, "data": {"shards": "/a"}, "seed": 0}
    wanted = {"training": {"schedule": "constant", "new": 1}, "data": {"shards": "/b"}, "seed": 0}
    assert not check_same_run(tmp_path, saved, wanted)
    assert "data.shards: /a → /b" in capsys.readouterr().err


SOURCES = [{"name": "a", "shards": "/a", "weight": 1}, {"name": "b", "shards": ["/b1", "/b2"], "weight": 2}]


@pytest.mark.parametrize(
    ("wanted", "refused"),
    [
        ([{**SOURCES[0], "shards": "/moved"}, {**SOURCES[1], "shards": ["/c1", "/c2"]}], None),
        ([SOURCES[0], {**SOURCES[1], "weight": 3}], "data.sources[1].weight: 2 → 3"),
        (SOURCES[:1], "data.sources: 2 → 1"),
        (SOURCES[::-1], "data.sources[0].name: a → b"),
    ],
)
def test_sources_may_be_moved_but_not_changed(
    wanted: list[dict[str, object]], refused: str | None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before, after = (
        {"training": {"schedule": "constant"}, "data": {"sources": sources}, "seed": 0} for sources in (SOURCES, wanted)
    )
    if refused is None:
        assert not check_same_run(tmp_path, before, after)
        said = capsys.readouterr().err
        assert "data.sources[0].shards: /a → /moved" in said and "data.sources[1].shards" in said
    else:
        with pytest.raises(UserError, match="another recipe") as caught:
            check_same_run(tmp_path, before, after)
        assert refused in str(caught.value)


def test_what_changes_nothing_is_not_mentioned(embedded: Path, run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train(
        config_of(embedded, "trainer.max_steps=3", "data.workers=1", "training.gradient_checkpointing=true"),
        run,
    )
    assert "warning" not in capsys.readouterr().err


def test_the_wandb_id_is_the_run_s_wherever_it_lies(embedded: Path, begun: Path, run: Path, tmp_path: Path) -> None:
    first = read_checkpoint(begun / "checkpoints" / "last.ckpt")["dit4sr"]["run_id"]
    train(config_of(embedded, "trainer.max_steps=3"), run)
    assert read_checkpoint(run / "checkpoints" / "last.ckpt")["dit4sr"]["run_id"] == first
    train(config_of(embedded, "trainer.max_steps=1", "resume=never"), tmp_path / "other")
    assert read_checkpoint(tmp_path / "other" / "checkpoints" / "last.ckpt")["dit4sr"]["run_id"] != first


def test_a_micro_batch_changes_memory_alone(embedded: Path, tmp_path: Path) -> None:
    train(config_of(embedded, "trainer.max_steps=2"), tmp_path / "whole")
    train(config_of(embedded, "trainer.max_steps=2", "trainer.micro_batch=1"), tmp_path / "parts")
    one, two = (read_checkpoint(tmp_path / n / "checkpoints" / "last.ckpt") for n in ("whole", "parts"))
    assert one["global_step"] == two["global_step"] == 2
    largest = max(float((one["ema"][n] - two["ema"][n]).abs().max()) for n in one["ema"])
    assert largest < 1e-3  # a step is 1.5e-3
    assert losses(tmp_path / "parts") == pytest.approx(losses(tmp_path / "whole"), rel=1e-3)
    assert len(losses(tmp_path / "parts")) == 2


@pytest.mark.parametrize(("preset", "samples"), [("16gb", 1), ("24gb", 1), ("40gb", 4), ("80gb", 8)])
def test_memory_presets(preset: str, samples: int) -> None:
    config = compose_verb("train", "experiment=paper", f"trainer/memory={preset}", "out=unused")
    assert config.training.gradient_checkpointing and config.prompt.encoding == "cached"
    assert config.data.batch_size == 64 and micro_batch(config, 8) == samples
    assert (config.training.optimizer == "adamw8bit") == (preset in ("16gb", "24gb"))
    assert (config.trainer.average_on == "cpu") == (preset == "16gb")


@pytest.mark.parametrize(
    ("accelerator", "devices", "count"),
    [("cpu", 2, 2), ("cpu", "2", 2), ("cpu", "auto", 1), ("gpu", "0,3", 2), ("gpu", [1, 2, 5], 3)],
)
def test_devices_are_counted(accelerator: str, devices: object, count: int) -> None:
    assert count_devices(accelerator, devices) == count

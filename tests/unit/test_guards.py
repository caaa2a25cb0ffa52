"""Guards over a run's numbers, on real (tiny) optimisers and a real Lightning trainer."""

from __future__ import annotations

import csv
import os
import signal
from pathlib import Path
from typing import Any

import lightning
import pytest
import torch
from lightning.pytorch.callbacks import Callback
from safetensors.torch import load_file
from torch import nn
from torch.utils.data import DataLoader

from dit4sr.errors import UserError
from dit4sr.training.guards import FiniteGradients, LossSpikes
from dit4sr.training.monitoring import Monitor
from dit4sr.training.preemption import StopOnSignal


class Line(lightning.LightningModule):
    """Fits one weight; the batch of some steps is not a number, or far away."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate
        self.weight = nn.Parameter(torch.ones(3))
        self.seen: list[list[float]] = []

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> torch.Tensor:
        self.seen.append(self.weight.tolist())
        return (self.weight * batch["x"]).square().mean()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), lr=self.rate)


def fit(values: list[float], *callbacks: Callback, rate: float = 0.1, accumulate: int = 1) -> Line:
    batches = [{"index": torch.tensor([i]), "x": torch.full((3,), v), "prompt": ["a"]} for i, v in enumerate(values)]
    line = Line(rate)
    trainer = lightning.Trainer(
        max_steps=len(values) // accumulate, accelerator="cpu", callbacks=list(callbacks), logger=False,
        gradient_clip_val=1.0, accumulate_grad_batches=accumulate,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(line, DataLoader(batches, batch_size=None))  # type: ignore[arg-type]
    return line


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_step_without_finite_gradients_changes_nothing(value: float, tmp_path: Path) -> None:
    guard = FiniteGradients(3, tmp_path)
    line = fit([1.0, value, 1.0], guard)
    assert guard.skipped == 1 and guard.in_a_row == 0
    assert line.seen[1] != line.seen[0] and line.seen[2] == line.seen[1]
    assert torch.isfinite(line.weight).all() and line.weight.tolist() != line.seen[2]


def test_several_in_a_row_stop_the_run_and_keep_the_batch(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="3 steps in a row"):
        fit([1.0, *[float("nan")] * 5], FiniteGradients(3, tmp_path))
    (path,) = (tmp_path / "faults").iterdir()
    assert path.name == "batch-step4-rank0.safetensors"
    batch = load_file(path)
    assert torch.isnan(batch["x"]).all() and batch["index"].tolist() == [3]


def test_every_micro_batch_of_the_step_is_kept(tmp_path: Path) -> None:
    """The first one is the one that is no number."""
    with pytest.raises(UserError, match="2 steps in a row"):
        fit([1.0, 1.0, *[float("nan"), 1.0, 2.0] * 2], FiniteGradients(2, tmp_path), accumulate=2)
    kept = {path.name: load_file(path) for path in (tmp_path / "faults").iterdir()}
    assert sorted(kept) == ["batch-step3-rank0-0.safetensors", "batch-step3-rank0-1.safetensors"]
    assert [batch["index"].tolist() for _, batch in sorted(kept.items())] == [[4], [5]]


def test_spikes_are_noted_with_their_samples(tmp_path: Path) -> None:
    values = [1.0 + 0.01 * (i % 5) for i in range(80)]
    values[70] = 50.0
    fit(values, LossSpikes(tmp_path), rate=1e-4)
    with (tmp_path / "spikes.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["step"] for row in rows] == ["71"] and rows[0]["samples"] == "70"
    assert float(rows[0]["loss"]) > 100 * float(rows[0]["typical_loss"])


def test_a_spike_of_several_micro_batches_has_the_loss_and_the_samples_of_its_step(tmp_path: Path) -> None:
    """As without accumulation, in one batch of four samples."""
    values = [1.0 + 0.01 * (i % 5) for i in range(240)]
    values[241 - 24] = 50.0  # the second of the four micro-batches of step 55
    line = fit(values, LossSpikes(tmp_path), rate=0.0, accumulate=4)
    with (tmp_path / "spikes.csv").open(newline="") as file:
        (row,) = csv.DictReader(file)
    assert row["step"] == "55" and row["samples"] == "216 217 218 219"
    of_step = [value**2 for value in values[216:220]]
    assert float(row["loss"]) == pytest.approx(sum(of_step) / 4, rel=1e-6)
    assert float(row["typical_loss"]) == pytest.approx(1.04, abs=0.03) and line.weight.tolist() == [1, 1, 1]


def test_a_calm_run_notes_nothing(tmp_path: Path) -> None:
    fit([1.0 + 0.01 * (i % 5) for i in range(80)], LossSpikes(tmp_path), rate=1e-4)
    assert not (tmp_path / "spikes.csv").exists()


class Raise(Callback):
    """Sends this process a signal during a step."""

    def __init__(self, step: int, number: int) -> None:
        self.step, self.number = step, number

    def on_before_optimizer_step(self, trainer: lightning.Trainer, *args: Any) -> None:
        if trainer.global_step + 1 == self.step:
            os.kill(os.getpid(), self.number)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
@pytest.mark.parametrize("saves", [True, False])
def test_a_signal_saves_at_the_end_of_the_step_and_stops(
    number: int, saves: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    before = signal.getsignal(number)
    asked: list[int] = []

    def save(trainer: lightning.Trainer) -> bool:
        asked.append(trainer.global_step)
        return saves

    stop = StopOnSignal(save)
    line = fit([1.0] * 6, stop, Raise(3, number))
    assert stop.stopped and asked == [3] and len(line.seen) == 3
    assert signal.getsignal(number) is before
    said = capsys.readouterr().err
    assert ("saved step 3; the same command goes on" in said) is saves
    assert ("this run saves nothing, so the same command begins again" in said) is not saves


def test_the_heartbeat_says_how_far_a_run_is(tmp_path: Path) -> None:
    import json

    fit([1.0] * 4, Monitor(tmp_path, batch_size=1, every=2, beat_seconds=0))
    facts = json.loads((tmp_path / "heartbeat.json").read_text())
    assert facts["done"] and facts["step"] == facts["steps"] == 4

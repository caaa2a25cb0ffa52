"""A training step never waits for a device: nothing reads a device's numbers between two log entries."""

from __future__ import annotations

import os
import signal
import traceback
from pathlib import Path
from typing import Any

import lightning
import pytest
import torch
from lightning.pytorch.callbacks import Callback
from omegaconf import DictConfig
from safetensors.torch import load_file
from tiny_training import config_of, rows_of
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.data import DataLoader

import dit4sr.training.run as training_run
from dit4sr.data.transfer import batch_to_device
from dit4sr.errors import Preempted, UserError
from dit4sr.training import optimizers, trainer
from dit4sr.training.guards import FiniteGradients
from dit4sr.training.late_reads import LateReads
from dit4sr.training.logging import MetricsCSV
from dit4sr.training.module import DiT4SRModule
from dit4sr.training.optimizers import build_optimizer, skips_on_device

STEPS = ("training.optimizer=adamw", "trainer.max_steps=8", "trainer.log_every_n_steps=8", "trainer.peak_flops=1e9")


class Reads(TorchDispatchMode):
    """Notes where a tensor's value is asked for: on a GPU the host would wait there."""

    def __init__(self) -> None:
        super().__init__()
        self.places: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.nonzero.default):
            self.places.append("".join(traceback.format_stack(limit=8)))
        return func(*args, **(kwargs or {}))


class Watch(Callback):
    """Watches whole steps, data included: from the beginning of step 3 to that of step 7."""

    def __init__(self, mode: Any) -> None:
        self.mode = mode

    def on_train_batch_start(self, trainer: lightning.Trainer, *args: Any) -> None:
        if trainer.global_step == 2:
            self.mode.__enter__()
        if trainer.global_step == 6:
            self.mode.__exit__(None, None, None)


@pytest.fixture
def watched(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Train with a mode on for four steps."""

    def run(config: DictConfig, out: Path, mode: Any) -> None:
        build_trainer = trainer.build_trainer
        monkeypatch.setattr(trainer, "build_trainer", lambda *args: _with(build_trainer(*args), Watch(mode)))
        training_run.train(config, out)

    return run


def _with(made: lightning.Trainer, callback: Callback) -> lightning.Trainer:
    made.callbacks.insert(0, callback)  # type: ignore[attr-defined]
    return made


def test_no_value_is_read_in_a_step(
    embedded: Path, tmp_path: Path, watched: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a GPU, AdamW is fused; it runs on the CPU too."""
    monkeypatch.setattr(optimizers, "can_fuse", lambda parameters: True)
    reads = Reads()
    watched(config_of(embedded, *STEPS), tmp_path, reads)
    assert not reads.places, reads.places[0]


def test_the_watch_sees_what_is_read(embedded: Path, tmp_path: Path, watched: Any) -> None:
    """On the CPU the guard looks at the gradients at once."""
    reads = Reads()
    watched(config_of(embedded, *STEPS), tmp_path, reads)
    assert len([place for place in reads.places if "guards.py" in place]) == 4


class NoWaiting:
    def __enter__(self) -> None:
        torch.cuda.set_sync_debug_mode("error")

    def __exit__(self, *_: Any) -> None:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_no_step_waits_for_the_gpu(embedded: Path, tmp_path: Path, watched: Any) -> None:
    try:
        watched(config_of(embedded, *STEPS, "trainer=default", "trainer.accelerator=gpu", "trainer.devices=1",
                          "training.precision=bf16-mixed"), tmp_path, NoWaiting())  # fmt: skip
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.fixture
def reduced(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int]]:
    """What is averaged over the ranks, for which all of them wait, and after how many steps."""
    asked: list[tuple[str, int]] = []
    log = DiT4SRModule.log

    def noted(module: DiT4SRModule, name: str, *arguments: Any, **named: Any) -> None:
        if named.get("sync_dist"):
            asked.append((name, module.trainer.global_step))
        log(module, name, *arguments, **named)

    monkeypatch.setattr(DiT4SRModule, "log", noted)
    return asked


def test_ranks_wait_for_each_other_s_loss_where_it_is_logged(
    embedded: Path, tmp_path: Path, reduced: list[tuple[str, int]]
) -> None:
    losses = {}
    for every in (1, 3):
        reduced.clear()
        config = config_of(
            embedded, "trainer.max_steps=7", f"trainer.log_every_n_steps={every}", "trainer.micro_batch=2"
        )
        training_run.train(config, tmp_path / str(every))
        assert reduced == [("train/loss", step) for step in range(every, 8, every)]
        losses[every] = {row["step"]: row["train/loss"] for row in rows_of(tmp_path / str(every), "train/loss")}
    assert losses[3] == {step: losses[1][step] for step in ("3", "6")}


def test_the_step_at_which_a_run_is_stopped_is_logged_with_its_loss(
    embedded: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Stop(Callback):
        def on_train_batch_start(self, trainer: lightning.Trainer, *args: Any) -> None:
            if trainer.global_step == 4:
                os.kill(os.getpid(), signal.SIGUSR1)

    build_trainer = trainer.build_trainer
    monkeypatch.setattr(trainer, "build_trainer", lambda *args: _with(build_trainer(*args), Stop()))
    with pytest.raises(Preempted):
        training_run.train(config_of(embedded, "trainer.max_steps=9", "trainer.log_every_n_steps=3"), tmp_path)
    assert [row["step"] for row in rows_of(tmp_path, "train/loss")] == ["3", "5"]


def test_what_the_host_reads_stays_there() -> None:
    batch = {"index": torch.arange(2), "prompt": ["a", "b"], "hq": torch.zeros(2, 3)}
    batch["embedding"] = [None, {"x": torch.ones(1)}]
    moved = batch_to_device(batch, torch.device("meta"))
    assert moved["index"].device.type == "cpu" and moved["hq"].device.type == "meta"
    assert moved["prompt"] == ["a", "b"]
    assert moved["embedding"][0] is None and moved["embedding"][1]["x"].device.type == "meta"


def test_late_reads_come_in_order() -> None:
    reads: LateReads[int] = LateReads()
    for n in range(3):
        reads.add(n, torch.tensor(float(n)))
    assert list(reads.ready()) == [(0, 0.0), (1, 1.0), (2, 2.0)] and not list(reads.ready(wait=True))


class Line(lightning.LightningModule):
    """Fits one weight by a fused AdamW; the batch of some steps is not a number."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(3))
        self.seen: list[list[float]] = []

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> torch.Tensor:
        self.seen.append(self.weight.tolist())
        return (self.weight * batch["x"]).square().mean()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), lr=0.1, fused=True)


def fit(values: list[float], *callbacks: Callback, logger: Any = False) -> Line:
    batches = [{"index": torch.tensor([i]), "x": torch.full((3,), v), "prompt": ["a"]} for i, v in enumerate(values)]
    line = Line()
    made = lightning.Trainer(
        max_steps=len(values), accelerator="cpu", callbacks=list(callbacks), logger=logger, gradient_clip_val=1.0,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    made.fit(line, DataLoader(batches, batch_size=None))  # type: ignore[arg-type]
    return line


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_the_device_skips_a_step_as_the_host_would(value: float, tmp_path: Path) -> None:
    guard = FiniteGradients(3, tmp_path)
    line = fit([1.0, 0.5, value, 2.0], guard)
    assert guard.skipped == 1 and guard.in_a_row == 0
    assert line.seen[1] != line.seen[0] and line.seen[3] == line.seen[2]
    without = fit([1.0, 0.5, 2.0], FiniteGradients(3, tmp_path))
    assert line.weight.tolist() == without.weight.tolist()  # moments and their count are as if it had not been


def test_several_in_a_row_stop_the_run_all_the_same(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="3 steps in a row"):
        fit([1.0, *[float("nan")] * 5], FiniteGradients(3, tmp_path))
    (path,) = (tmp_path / "faults").iterdir()
    assert path.name == "batch-step4-rank0.safetensors" and load_file(path)["index"].tolist() == [3]


class Lags(LateReads[Any]):
    """A device whose numbers arrive when they are waited for, or two steps later."""

    def add(self, tag: Any, value: torch.Tensor) -> None:
        super().add(tag, value)
        self._coming[-1] = (*self._coming[-1][:2], NotYet())  # type: ignore[assignment]


class NotYet:
    def query(self) -> bool:
        return False

    def synchronize(self) -> None:
        pass


class Saving(Callback):
    """Asks for the guard's state, as a checkpoint does, after some steps."""

    def __init__(self, guard: FiniteGradients, *steps: int) -> None:
        self.guard, self.steps, self.heard = guard, steps, dict[int, int]()

    def on_train_batch_end(self, trainer: lightning.Trainer, *args: Any) -> None:
        if trainer.global_step in self.steps:
            self.heard[trainer.global_step] = self.guard.state_dict()["skipped"]


@pytest.mark.parametrize("saved_at", [(), (2,), (3,)])
def test_a_skip_is_logged_whenever_it_is_heard_of(saved_at: tuple[int, ...], tmp_path: Path) -> None:
    """Late, by a checkpoint that waits for it, or at the end."""
    guard, nan = FiniteGradients(3, tmp_path), float("nan")
    guard._reads = Lags()
    saving = Saving(guard, *saved_at)
    logger = MetricsCSV(tmp_path / "metrics.csv")
    fit([1.0, nan, 1.0, 1.0, 1.0, 1.0, nan], guard, saving, logger=logger)
    logged = [(int(row["step"]), float(row["train/skipped_steps"])) for row in rows_of(tmp_path, "train/skipped_steps")]
    assert [count for _, count in logged] == [1, 2] and logged[-1][0] == 7
    assert logged[0][0] == {(): 4, (2,): 3, (3,): 4}[saved_at]
    assert all(count == 1 for count in saving.heard.values())


def test_a_resumed_run_does_not_log_the_skips_of_before(tmp_path: Path) -> None:
    guard = FiniteGradients(3, tmp_path)
    guard.load_state_dict({"skipped": 4, "in_a_row": 0})
    fit([1.0, 1.0], guard, logger=MetricsCSV(tmp_path / "metrics.csv"))
    assert not (tmp_path / "metrics.csv").exists() or not rows_of(tmp_path, "train/skipped_steps")


ADAMW = {"optimizer": "adamw", "learning_rate": 0.1, "betas": [0.9, 0.99], "weight_decay": 0.1}


def test_whether_it_is_fused_follows_the_device_and_not_the_checkpoint(monkeypatch: pytest.MonkeyPatch) -> None:
    network = nn.Linear(3, 2)
    plain = build_optimizer(network, ADAMW)
    assert not skips_on_device(plain)
    monkeypatch.setattr(optimizers, "can_fuse", lambda parameters: True)
    fused = build_optimizer(network, ADAMW)
    assert skips_on_device(fused)
    assert not skips_on_device(build_optimizer(network, ADAMW, scaled=True))
    network(torch.ones(1, 3)).sum().backward()
    fused.step()
    plain.load_state_dict(fused.state_dict())
    assert not skips_on_device(plain)
    fused.load_state_dict(plain.state_dict())
    assert skips_on_device(fused)
    plain.step()


def test_fused_rounds_differently_and_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    start, gradients = torch.randn(50, 20), torch.randn(10, 50, 20)
    results = []
    for fuse in (False, True):
        monkeypatch.setattr(optimizers, "can_fuse", lambda parameters, fuse=fuse: fuse)
        network = nn.Linear(20, 50, bias=False)
        network.weight.data.copy_(start)
        optimizer = build_optimizer(network, ADAMW)
        for gradient in gradients:
            network.weight.grad = gradient.clone()
            optimizer.step()
        results.append(network.weight.detach().clone())
    torch.testing.assert_close(*results, atol=2e-6, rtol=2e-6)

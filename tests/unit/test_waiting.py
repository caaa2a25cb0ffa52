"""A training step never waits for a device: nothing reads a device's numbers between two log entries."""

from __future__ import annotations

import traceback
from pathlib import Path
from typing import Any

import lightning
import pytest
import torch
from lightning.pytorch.callbacks import Callback
from omegaconf import DictConfig
from safetensors.torch import load_file
from tiny_checkpoint import TINY, compose_verb
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.data import DataLoader

import dit4sr.training.run as training_run
from dit4sr.data.prepare import ensure_embedded
from dit4sr.data.transfer import batch_to_device
from dit4sr.errors import UserError
from dit4sr.training import optimizers, trainer
from dit4sr.training.guards import FiniteGradients
from dit4sr.training.late_reads import LateReads
from dit4sr.training.optimizers import build_optimizer, skips_on_device


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    ensure_embedded(folder)
    return folder


def config_of(data: Path, *overrides: str) -> DictConfig:
    return compose_verb(
        "train", *TINY, "backbone.transformer.num_layers=1", "backbone.crop=32", "training.batch_size=4",
        "training.optimizer=adamw", "data.workers=0", "trainer=cpu", "trainer.max_steps=8", "trainer.peak_flops=1e9",
        "trainer.log_every_n_steps=8", "callbacks=none", "callbacks.progress=false", "logger=csv",
        f"paths.data={data}", "out=unused", *overrides,
    )  # fmt: skip


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


def test_no_value_is_read_in_a_step(data: Path, tmp_path: Path, watched: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a GPU, AdamW is fused; it runs on the CPU too."""
    monkeypatch.setattr(optimizers, "can_fuse", lambda parameters: True)
    reads = Reads()
    watched(config_of(data), tmp_path, reads)
    assert not reads.places, reads.places[0]


def test_the_watch_sees_what_is_read(data: Path, tmp_path: Path, watched: Any) -> None:
    """On the CPU the guard looks at the gradients at once."""
    reads = Reads()
    watched(config_of(data), tmp_path, reads)
    assert len([place for place in reads.places if "guards.py" in place]) == 4


class NoWaiting:
    def __enter__(self) -> None:
        torch.cuda.set_sync_debug_mode("error")

    def __exit__(self, *_: Any) -> None:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_no_step_waits_for_the_gpu(data: Path, tmp_path: Path, watched: Any) -> None:
    try:
        watched(config_of(data, "trainer=default", "trainer.accelerator=gpu", "trainer.devices=1",
                          "training.precision=bf16-mixed"), tmp_path, NoWaiting())  # fmt: skip
    finally:
        torch.cuda.set_sync_debug_mode("default")


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


def fit(values: list[float], guard: FiniteGradients) -> Line:
    batches = [{"index": torch.tensor([i]), "x": torch.full((3,), v), "prompt": ["a"]} for i, v in enumerate(values)]
    line = Line()
    made = lightning.Trainer(
        max_steps=len(values), accelerator="cpu", callbacks=[guard], logger=False, gradient_clip_val=1.0,
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

"""Where the time of the nano training and of its sampling goes: ``python benchmarks/training.py --profile``.

The real verb trains, with every callback; the functions named in :data:`PARTS` are timed while it does, each without
what it calls of the others, so that the parts add up to the whole. Timers on the few functions of a step cost nothing
that shows, unlike torch.profiler, which is used for the operators alone (``--trace``).
"""

from __future__ import annotations

import functools
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import lightning
import numpy as np
import torch
from configs import named
from lightning.pytorch.callbacks import Callback
from measuring import Report, table

MODEL = ("network, forward", "network, backward", "optimiser", "average of the weights")
"""Parts of training that are the model's arithmetic; the rest is what surrounds it."""


class Parts:
    """Seconds by part, each without the parts inside it."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._open: list[str] = []
        self._since = time.perf_counter()

    def begin(self) -> None:
        """Count from here on."""
        self.seconds, self._since = {}, time.perf_counter()

    def note(self) -> None:
        """Count up to here."""
        now = time.perf_counter()
        name = self._open[-1] if self._open else "everything else"
        self.seconds[name] = self.seconds.get(name, 0.0) + now - self._since
        self._since = now

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Within the block time belongs to this part."""
        self.note()
        self._open.append(name)
        try:
            yield
        finally:
            self.note()
            self._open.pop()

    def timed(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """The same function, as a part."""

        @functools.wraps(function)
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            with self.part(name):
                return function(*args, **kwargs)

        return wrapper

    def iterated(self, name: str, function: Callable[..., Iterator[Any]]) -> Callable[..., Iterator[Any]]:
        """The same generator function, its items as a part."""

        @functools.wraps(function)
        def wrapper(*args: Any, **kwargs: Any) -> Iterator[Any]:
            items = function(*args, **kwargs)
            while True:
                with self.part(name):
                    item = next(items, None)
                if item is None:
                    return
                yield item

        return wrapper

    def table(self, per: int, unit: str) -> str:
        """Milliseconds and shares, longest first."""
        whole = sum(self.seconds.values())
        rows = [
            [name, f"{1000 * took / per:.2f}", f"{100 * took / whole:.1f} %"]
            for name, took in sorted(self.seconds.items(), key=lambda pair: -pair[1])
        ]
        return table([*rows, ["sum", f"{1000 * whole / per:.2f}", "100 %"]], ["part", f"ms {unit}", "share"])

    def share(self, names: tuple[str, ...]) -> float:
        """Of the whole."""
        return sum(self.seconds.get(name, 0.0) for name in names) / sum(self.seconds.values())


class FromTheThirdStep(Callback):
    """The first two steps warm up."""

    def __init__(self, parts: Parts) -> None:
        self.parts = parts

    def on_train_batch_start(self, trainer: lightning.Trainer, *args: Any) -> None:
        if trainer.global_step == 2:
            self.parts.begin()

    def on_train_batch_end(self, trainer: lightning.Trainer, *args: Any) -> None:
        if trainer.global_step == trainer.max_steps:
            self.parts.note()
            self.result = dict(self.parts.seconds)


def profile_training(report: Report, steps: int) -> None:
    """Train by the verb and print the parts."""
    from hydra import compose, initialize_config_dir

    from dit4sr.config import config_dir
    from dit4sr.data.datamodule import SRDataModule
    from dit4sr.data.loading import TrainingBatches
    from dit4sr.models import DiT4SRTransformer2DModel
    from dit4sr.training import trainer as training_trainer
    from dit4sr.training.callbacks import StepProgress
    from dit4sr.training.data_report import DataReport
    from dit4sr.training.ema import ExponentialMovingAverage
    from dit4sr.training.guards import FiniteGradients, LossSpikes
    from dit4sr.training.logging import MetricsCSV
    from dit4sr.training.module import DiT4SRModule
    from dit4sr.training.monitoring import Monitor
    from dit4sr.training.run import train

    functions: list[tuple[Any, str, str]] = [
        (DiT4SRTransformer2DModel, "forward", MODEL[0]),
        (torch.Tensor, "backward", MODEL[1]),
        (torch.optim.Muon, "step", MODEL[2]),
        (torch.optim.AdamW, "step", MODEL[2]),
        (ExponentialMovingAverage, "update", MODEL[3]),
        (DiT4SRModule, "loss", "latents, noise, text, loss"),
        (SRDataModule, "transfer_batch_to_device", "transfer"),
        (DiT4SRModule, "configure_gradient_clipping", "clipping and guard"),
        (FiniteGradients, "on_before_optimizer_step", "clipping and guard"),
        (lightning.LightningModule, "log", "logging"),
        (MetricsCSV, "log_metrics", "logging"),
        (DiT4SRModule, "on_before_optimizer_step", "logging"),
        (StepProgress, "on_train_batch_end", "progress"),
        (Monitor, "on_train_batch_end", "monitor and reports"),
        (LossSpikes, "on_train_batch_end", "monitor and reports"),
        (DataReport, "on_train_batch_end", "monitor and reports"),
    ]
    parts = Parts()
    watch = FromTheThirdStep(parts)
    build = training_trainer.build_trainer

    def with_watch(*args: Any) -> lightning.Trainer:
        trainer = build(*args)
        trainer.callbacks[:0] = [watch]  # type: ignore[attr-defined]
        trainer.callbacks.sort(key=lambda callback: callback is watch)  # type: ignore[attr-defined]
        return trainer

    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        for owner, name, part in functions:
            stack.enter_context(patch.object(owner, name, parts.timed(part, getattr(owner, name))))
        waiting = parts.iterated("waiting for data", TrainingBatches.__iter__)
        stack.enter_context(patch.object(TrainingBatches, "__iter__", waiting))
        stack.enter_context(patch.object(training_trainer, "build_trainer", with_watch))
        with initialize_config_dir(str(config_dir()), version_base="1.3"):
            data = Path(__file__).resolve().parents[1] / "data"
            config = compose(
                "train",
                [f"trainer.max_steps={steps}", "trainer=cpu", "callbacks=none", "logger=csv", "callbacks.progress=true",
                 f"paths.data={data}", "out=unused"],
            )  # fmt: skip
        train(config, Path(folder))
    parts.seconds = watch.result
    report.say(
        f"The nano training's steps 3 to {steps}, a batch of {config.data.batch_size}, with all its callbacks:\n"
    )
    report.say(parts.table(steps - 2, "a step"))
    report.say(f"\nThe model's own work ({', '.join(MODEL)}): {100 * parts.share(MODEL):.1f} %.\n")


def profile_sampling(report: Report, side: int = 48) -> None:
    """Restore one image as the demo does, with random weights, and print the parts."""

    from dit4sr.autoencoders import build_autoencoder
    from dit4sr.models.build import build_network
    from dit4sr.prompts import build_text_encoder
    from dit4sr.restoration.restorer import Restorer, TileSettings
    from dit4sr.restoration.sampler_settings import SamplerSettings

    backbone, sampler = named("backbone", "nano"), named("sampler", "nano")
    network = build_network(named("model", "dit4sr"), backbone, seed=0).eval()
    autoencoder = build_autoencoder(backbone["autoencoder"], None)
    restorer = Restorer(
        network=network,
        autoencoder=autoencoder,
        text_encoder=build_text_encoder(backbone["text_encoder"], None),
        sampler=SamplerSettings.from_config(sampler),
        tile=TileSettings(**backbone["tile"]),
        device=torch.device("cpu"),
        patch=backbone["transformer"]["patch_size"],
    )
    lq = np.random.default_rng(0).integers(0, 256, (side, side, 3), dtype=np.uint8)
    parts = Parts()
    with ExitStack() as stack:
        for owner, name, part in (
            (type(network), "forward", "network"),
            (type(autoencoder), "encode", "autoencoder"),
            (type(autoencoder), "decode", "autoencoder"),
        ):
            stack.enter_context(patch.object(owner, name, parts.timed(part, getattr(owner, name))))
        restorer.restore(lq, "a photo", seed=0)
        parts.begin()
        restorer.restore(lq, "a photo", seed=0)
        parts.note()
    report.say(f"Restoring {side}×{side} to {4 * side}×{4 * side} by the nano network, {sampler['steps']} steps:\n")
    report.say(parts.table(1, "an image"))

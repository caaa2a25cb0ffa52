"""How fast a run goes and what it waits for: to the loggers, and to a heartbeat file for watchers."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning
import torch
from lightning.pytorch.callbacks import Callback

from dit4sr.files import write_atomically

PEAK_FLOPS = {
    "H200": 989e12,
    "H100": 989e12,
    "A100": 312e12,
    "L40S": 362e12,
    "A10": 125e12,
    "RTX 4090": 165e12,
    "RTX 3090": 71e12,
}
"""Dense bfloat16 tensor-core peak by a part of the device's name (NVIDIA's data sheets; with sparsity they state twice
as much)."""


def peak_flops(device: torch.device) -> float | None:
    """Peak bfloat16 FLOP/s of a device; None where it is not known."""
    if device.type != "cuda":
        return None
    name = torch.cuda.get_device_name(device)
    return next((peak for part, peak in PEAK_FLOPS.items() if part in name), None)


class Monitor(Callback):
    """Log samples/s, the share of time spent waiting for data, memory and MFU; write ``<folder>/heartbeat.json``.

    Times are of the host: on a GPU, whose kernels run behind, they are right on average over a logging interval
    because the loss is read at its end.

    Args:
        folder: of the run.
        batch_size: of all ranks together.
        every: steps between log entries.
        flops_per_step: of one training step over all ranks, for MFU; called once, None where it is not known.
        beat_seconds: least time between two heartbeats.
    """

    def __init__(
        self,
        folder: Path,
        batch_size: int,
        every: int,
        flops_per_step: Callable[[], float | None] | None = None,
        beat_seconds: float = 10.0,
    ) -> None:
        self.path, self.batch_size, self.every = folder / "heartbeat.json", batch_size, every
        self.flops_per_step, self.beat_seconds = flops_per_step, beat_seconds
        self._flops: float | None = None
        self._peak: float | None = None
        self._batch_ended = self._interval_began = time.perf_counter()
        self._waited = 0.0
        self._step = 0
        self._beat = float("-inf")

    def on_train_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        self._peak = peak_flops(pl_module.device)
        self._flops = self.flops_per_step() if self.flops_per_step and self._peak else None
        if pl_module.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(pl_module.device)
        self._restart(trainer)

    def _restart(self, trainer: lightning.Trainer) -> None:
        self._batch_ended = self._interval_began = time.perf_counter()
        self._waited, self._step = 0.0, trainer.global_step

    def on_train_batch_start(self, trainer: lightning.Trainer, *args: Any) -> None:
        self._waited += time.perf_counter() - self._batch_ended

    def on_train_batch_end(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, outputs: Any, *args: Any
    ) -> None:
        now = self._batch_ended = time.perf_counter()
        steps = trainer.global_step - self._step
        if trainer.is_global_zero and now - self._beat >= self.beat_seconds:
            self._beat = now
            self._write(trainer, float(outputs["loss"]))
        if steps < self.every:
            return
        float(outputs["loss"])  # until the device is done
        now = time.perf_counter()
        seconds = now - self._interval_began
        metrics = {
            "speed/samples_per_second": steps * self.batch_size / seconds,
            "speed/data_wait": self._waited / seconds,
        }
        if pl_module.device.type == "cuda":
            metrics["speed/memory_gib"] = torch.cuda.max_memory_allocated(pl_module.device) / 2**30
        if self._flops and self._peak:
            metrics["speed/mfu"] = steps * self._flops / seconds / (self._peak * trainer.world_size)
        if trainer.logger is not None:
            for logger in trainer.loggers:
                logger.log_metrics(metrics, step=trainer.global_step)
        self._restart(trainer)

    def _write(self, trainer: lightning.Trainer, loss: float) -> None:
        facts = {"step": trainer.global_step, "steps": trainer.max_steps, "loss": loss, "time": time.time()}
        with write_atomically(self.path) as temporary:
            temporary.write_text(json.dumps(facts))

    def on_train_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        if trainer.is_global_zero:
            facts = {"step": trainer.global_step, "steps": trainer.max_steps, "done": True, "time": time.time()}
            with write_atomically(self.path) as temporary:
                temporary.write_text(json.dumps(facts))

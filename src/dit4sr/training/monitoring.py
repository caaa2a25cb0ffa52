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
from dit4sr.models.flops import TrainingFlops
from dit4sr.training.late_reads import LateReads
from dit4sr.training.step_loss import StepLoss


class Monitor(Callback):
    """Log samples/s, the share of time spent waiting for data, memory and MFU; write ``<folder>/heartbeat.json``.

    Times are of the host: on a GPU, whose kernels run behind, they are right on average over a logging interval
    because the loss is read at its end. They are of training: what the callbacks between this one and ``last`` take at
    the end of a step (validation, checkpoints) is left out of them, and logged as ``speed/callbacks``, its share of the
    whole.

    ``train/mfu`` is FLOPs that the steps needed / (seconds × peak FLOP/s of all devices); ``train/hfu``, with gradient
    checkpointing, counts what is computed twice. A GPU is a device, and so is the CPU of a machine, which all processes
    there share.

    Args:
        folder: of the run.
        batch_size: of all ranks together.
        every: steps between log entries.
        flops: of a sample's training step, asked once; None where it is not known.
        peak: FLOP/s of a device that utilisation refers to, asked once; None for no utilisation.
        beat_seconds: least time between two heartbeats.

    Attributes:
        latest: the newest values by name, for whoever shows them.
        last: a callback to be put behind all others.
    """

    def __init__(
        self,
        folder: Path,
        batch_size: int,
        every: int,
        flops: Callable[[], TrainingFlops | None] | None = None,
        peak: Callable[[torch.device], float | None] | None = None,
        beat_seconds: float = 10.0,
    ) -> None:
        self.path, self.batch_size, self.every = folder / "heartbeat.json", batch_size, every
        self.flops, self.peak, self.beat_seconds = flops, peak, beat_seconds
        self.latest: dict[str, float] = {}
        self.last = _AfterTheOthers(self)
        self._flops: TrainingFlops | None = None
        self._peak: float | None = None
        self._beat = float("-inf")
        self._step_loss = StepLoss()
        self._loss: torch.Tensor | None = None
        self._beats: LateReads[int] = LateReads()
        self._clear(0)

    def on_train_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        if trainer.is_global_zero and self.flops and self.peak:
            self._peak = self.peak(pl_module.device)
            self._flops = self.flops() if self._peak else None
        if pl_module.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(pl_module.device)
        self._step_loss.begin(trainer)
        self._clear(trainer.global_step)

    def _clear(self, step: int) -> None:
        self._batch_ended = self._interval_began = time.perf_counter()
        self._waited, self._others, self._step = 0.0, 0.0, step

    def on_train_batch_start(self, trainer: lightning.Trainer, *args: Any) -> None:
        self._waited += time.perf_counter() - self._batch_ended

    def on_train_batch_end(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, outputs: Any, *args: Any
    ) -> None:
        now = self._batch_ended = time.perf_counter()
        steps = trainer.global_step - self._step
        loss = self._step_loss.add(trainer, outputs)
        self._loss = self._loss if loss is None else loss
        if steps >= self.every and loss is not None:
            self._log(trainer, pl_module, steps, float(loss))  # read: until the device is done
        if trainer.is_global_zero and self._loss is not None and now - self._beat >= self.beat_seconds:
            self._beat = now
            self._beats.add(trainer.global_step, self._loss)
        for _, arrived in self._beats.ready():
            self._write(trainer, **self.latest, loss=arrived)

    def _log(self, trainer: lightning.Trainer, module: lightning.LightningModule, steps: int, loss: float) -> None:
        whole = time.perf_counter() - self._interval_began
        seconds = whole - self._others
        metrics = {
            "speed/samples_per_second": steps * self.batch_size / seconds,
            "speed/data_wait": self._waited / seconds,
            "speed/callbacks": self._others / whole,
        }
        if module.device.type == "cuda":
            metrics["speed/memory_gib"] = torch.cuda.max_memory_allocated(module.device) / 2**30
        if self._flops and self._peak:
            devices = trainer.num_nodes if module.device.type == "cpu" else trainer.world_size
            samples_at_peak = metrics["speed/samples_per_second"] / (self._peak * devices)
            metrics["train/mfu"] = self._flops.model * samples_at_peak
            if self._flops.recomputed:
                metrics["train/hfu"] = self._flops.hardware * samples_at_peak
        self.latest = {"train/loss": loss, **metrics}
        for logger in trainer.loggers:
            logger.log_metrics(metrics, step=trainer.global_step)
        self._clear(trainer.global_step)

    def others_took(self, until: float) -> None:
        """Told when the other callbacks of a step have ended."""
        self._others += until - self._batch_ended
        self._batch_ended = until

    def _write(self, trainer: lightning.Trainer, **facts: Any) -> None:
        known = {"step": trainer.global_step, "steps": trainer.max_steps, "time": time.time()}
        with write_atomically(self.path) as temporary:
            temporary.write_text(json.dumps(known | {name.rpartition("/")[2]: fact for name, fact in facts.items()}))

    def on_train_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        if trainer.is_global_zero:
            self._write(trainer, done=True)


class _AfterTheOthers(Callback):
    """Tells the monitor when the callbacks behind it are done with a step."""

    def __init__(self, monitor: Monitor) -> None:
        self._monitor = monitor

    def on_train_batch_end(self, *args: Any) -> None:
        self._monitor.others_took(time.perf_counter())

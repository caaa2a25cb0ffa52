"""Callbacks: progress with rate and estimate, and checkpoints that are never half written."""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import lightning
from lightning.pytorch.callbacks import Callback
from tqdm import tqdm

from dit4sr.training.checkpoint_files import BEST, LAST, remove_partial, step_file
from dit4sr.training.logging import write_ahead
from dit4sr.training.monitoring import Monitor


def due(step: int, every: int, steps: int) -> bool:
    """Whether something that happens every ``every`` steps, and at the end, is due after ``step``; 0 is never."""
    return every > 0 and step > 0 and (step % every == 0 or step == steps)


class StepProgress(Callback):
    """One line for the whole run: steps done, rate, time left, loss, and what is known of its speed.

    Args:
        steps: of the run.
        monitor: whose newest values are shown, see :class:`Monitor`; None for a run without one.
    """

    def __init__(self, steps: int, monitor: Monitor | None) -> None:
        self.steps, self.monitor = steps, monitor
        self._shown: dict[str, float] = {}
        self.bar: tqdm | None = None

    def on_train_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        self.bar = tqdm(
            total=self.steps,
            initial=trainer.global_step,
            desc="training",
            unit="step",
            disable=not trainer.is_global_zero,
            dynamic_ncols=True,
            mininterval=1.0 if sys.stderr.isatty() else 20.0,  # few lines where nobody watches
        )

    def on_train_batch_end(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, outputs: Any, *args: Any
    ) -> None:
        assert self.bar is not None
        if advance := trainer.global_step - self.bar.n:
            if self.monitor is not None and self.monitor.latest != self._shown:
                self._shown = self.monitor.latest
                self.bar.set_postfix_str(speed_in_words(self._shown), refresh=False)
            self.bar.update(advance)

    def on_train_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        if self.bar is not None:
            self.bar.close()

    def on_exception(self, trainer: lightning.Trainer, *args: Any) -> None:
        if self.bar is not None:
            self.bar.close()


def speed_in_words(values: Mapping[str, float]) -> str:
    """Loss, samples/s, and the share of waiting, memory and MFU where they are known."""
    words = [f"loss {values['train/loss']:.4f}", f"{values['speed/samples_per_second']:.0f} samples/s"]
    words.append(f"data wait {100 * values['speed/data_wait']:.0f} %")
    if "train/mfu" in values:
        words.append(f"MFU {100 * values['train/mfu']:.1f} %")
    if "speed/memory_gib" in values:
        words.append(f"{values['speed/memory_gib']:.1f} GiB")
    return ", ".join(words)


class Checkpoints(Callback):
    """``checkpoints/step-<n>.ckpt`` every n steps and at the end, the newest also as ``last.ckpt``; ``best.ckpt`` by
    the held-out loss.

    Args:
        folder: the run's ``checkpoints``.
        every: steps between two of them; 0 saves none.
        steps: of the run.
        keep: how many step files are kept, so that a damaged one has a predecessor.
    """

    def __init__(self, folder: Path, every: int, steps: int, keep: int = 2) -> None:
        self.folder, self.every, self.steps, self.keep = folder, every, steps, keep
        self.best: float | None = None
        self.saved_at = -1

    def state_dict(self) -> dict[str, Any]:
        return {"best": self.best}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.best = state_dict["best"]

    def on_train_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        self.saved_at = trainer.global_step
        if trainer.is_global_zero:
            remove_partial(self.folder)

    def on_train_batch_end(self, trainer: lightning.Trainer, *args: Any) -> None:
        if due(trainer.global_step, self.every, self.steps):
            self.save(trainer)

    def save(self, trainer: lightning.Trainer) -> bool:
        """Save this step, unless it is saved already or the run saves nothing; whether there is a checkpoint of it."""
        if self.every and self.saved_at != trainer.global_step:
            self.saved_at = trainer.global_step
            write_ahead(trainer)
            trainer.save_checkpoint(
                step_file(self.folder, trainer.global_step),
                weights_only=False,
                storage_options={"alias": self.folder / LAST, "keep": self.keep},
            )
        return bool(self.every)

    def validated(self, trainer: lightning.Trainer, loss: float) -> None:
        """Told the held-out loss after each validation."""
        if math.isfinite(loss) and (self.best is None or loss < self.best):
            self.best = loss
            trainer.save_checkpoint(self.folder / BEST, weights_only=False, storage_options={})

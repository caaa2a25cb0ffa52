"""Guards over the numbers of a run: gradients that are not finite, and losses that jump."""

from __future__ import annotations

import csv
import json
import math
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import lightning
import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor

from dit4sr.errors import UserError
from dit4sr.files import write_atomically
from dit4sr.training.late_reads import LateReads
from dit4sr.training.optimizers import skips_on_device
from dit4sr.training.sharding import whole
from dit4sr.training.step_loss import StepLoss

Batches = Sequence[Mapping[str, Any]]
"""The micro-batches of a step."""


class FiniteGradients(Callback):
    """Skip a step whose gradients are not finite; stop after several in a row, keeping the last one's samples.

    A skipped step counts as a step (the data's position follows from their number) but changes neither weights nor
    moments: without gradients the optimisers leave a parameter alone. Gradients are averaged over the ranks before
    they are looked at, so all ranks skip the same step.

    A fused AdamW on a GPU skips there, by the ``found_inf`` that it shares with gradient scaling, and the host hears of
    it a step or two later: it need not wait for the gradients before it can go on.

    Args:
        limit: consecutive skips after which the run stops.
        folder: of the run; the batch goes to ``<folder>/faults``, a file for each micro-batch and rank.
    """

    def __init__(self, limit: int, folder: Path) -> None:
        self.limit, self.folder = limit, folder
        self.skipped = 0
        self.in_a_row = 0
        self._batches: list[Mapping[str, Any]] = []
        self._rank = 0
        self._told = 0
        self._reads: LateReads[tuple[int, Batches]] = LateReads()

    def state_dict(self) -> dict[str, Any]:
        self._hear(wait=True)
        return {"skipped": self.skipped, "in_a_row": self.in_a_row}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.skipped, self.in_a_row = state_dict["skipped"], state_dict["in_a_row"]
        self._told = self.skipped

    def on_train_batch_start(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        self._batches.append(batch)
        self._rank = trainer.global_rank

    def on_before_optimizer_step(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, optimizer: torch.optim.Optimizer
    ) -> None:
        gradients = [p.grad for p in pl_module.parameters() if p.grad is not None]
        finite = torch.isfinite(whole(torch.nn.utils.get_total_norm(gradients)))
        step, batches = trainer.global_step + 1, self._batches
        self._batches = []
        if skips_on_device(optimizer):
            optimizer.found_inf = (~finite).float()  # type: ignore[attr-defined]
            self._reads.add((step, batches), optimizer.found_inf)  # type: ignore[attr-defined]
            self._hear()
        else:
            bad = not bool(finite)
            if bad:
                optimizer.zero_grad(set_to_none=True)
            self._judge(step, batches, bad)

    def on_train_batch_end(self, trainer: lightning.Trainer, *args: Any) -> None:
        # By the loggers themselves and whenever it was heard: Lightning logs what is current at every n-th step alone,
        # and a checkpoint hears of skips between them.
        if self.skipped != self._told:
            self._told = self.skipped
            for logger in trainer.loggers:
                logger.log_metrics({"train/skipped_steps": float(self.skipped)}, step=trainer.global_step)

    def on_train_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        self._hear(wait=True)
        self.on_train_batch_end(trainer)

    def _hear(self, *, wait: bool = False) -> None:
        for (step, batches), bad in self._reads.ready(wait=wait):
            self._judge(step, batches, bool(bad))

    def _judge(self, step: int, batches: Batches, bad: bool) -> None:
        if not bad:
            self.in_a_row = 0
            return
        self.skipped += 1
        self.in_a_row += 1
        print(f"warning: step {step} is skipped: its gradients are not finite", file=sys.stderr)
        if self.in_a_row >= self.limit:
            folder = self.folder / "faults"
            for number, batch in enumerate(batches):
                part = f"-{number}" if len(batches) > 1 else ""
                save_batch(folder / f"batch-step{step}-rank{self._rank}{part}.safetensors", batch)
            raise UserError(
                f"the gradients of {self.in_a_row} steps in a row were not finite; the last batch is in {folder}. "
                "Lower training.learning_rate or training.gradient_clip, or train in trainer.precision=32-true"
            )


def save_batch(path: Path, batch: Mapping[str, Any]) -> None:
    """Write a batch's tensors as safetensors, its prompts in the metadata, for a reproduction."""
    from safetensors.torch import save_file

    tensors = {name: value.detach().cpu().contiguous() for name, value in batch.items() if isinstance(value, Tensor)}
    others = {name: value for name, value in batch.items() if isinstance(value, list | str | int | float)}
    with write_atomically(path) as temporary:
        save_file(tensors, temporary, metadata={name: json.dumps(value) for name, value in others.items()})


class LossSpikes(Callback):
    """Note steps whose loss is far above its running mean in ``<folder>/spikes.csv``, with the samples' numbers.

    Loss and samples are those of the first rank, of all its micro-batches. Mean and deviation are exponential averages
    of the logarithm. On a GPU a loss is read when it has arrived, a step or two late, so that reading does not make the
    host wait.

    Args:
        folder: of the run.
        deviations: how far above the mean a spike lies.
        warm_up: steps before the averages are trusted.
    """

    COLUMNS = ("step", "loss", "typical_loss", "deviations", "samples")

    def __init__(self, folder: Path, deviations: float = 6.0, warm_up: int = 50) -> None:
        self.path, self.deviations, self.warm_up = folder / "spikes.csv", deviations, warm_up
        self.mean, self.variance, self.seen = 0.0, 0.0, 0
        self._loss = StepLoss()
        self._samples: list[Tensor] = []
        self._reads: LateReads[tuple[int, list[Tensor]]] = LateReads()

    def state_dict(self) -> dict[str, Any]:
        self._hear(wait=True)
        return {"mean": self.mean, "variance": self.variance, "seen": self.seen}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.mean, self.variance, self.seen = state_dict["mean"], state_dict["variance"], state_dict["seen"]

    def on_train_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        self._loss.begin(trainer)
        self._samples = []

    def on_train_batch_end(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if trainer.is_global_zero:
            self._samples.append(batch["index"])
            if (loss := self._loss.add(trainer, outputs)) is not None:
                self._reads.add((trainer.global_step, self._samples), loss)
                self._samples = []
            self._hear()

    def on_train_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        self._hear(wait=True)

    def _hear(self, *, wait: bool = False) -> None:
        for (step, samples), loss in self._reads.ready(wait=wait):
            self._look(step, loss, samples)

    def _look(self, step: int, loss: float, samples: list[Tensor]) -> None:
        value = math.log(max(loss, 1e-30)) if math.isfinite(loss) else math.inf
        deviation = math.sqrt(self.variance)
        if self.seen >= self.warm_up and value > self.mean + self.deviations * max(deviation, 1e-3):
            self._write(step, loss, (value - self.mean) / max(deviation, 1e-3), samples)
            return  # a spike is no part of what is typical
        if math.isfinite(value):
            self.seen += 1
            rate = max(0.02, 1 / self.seen)
            difference = value - self.mean
            self.mean += rate * difference
            self.variance = (1 - rate) * (self.variance + rate * difference**2)

    def _write(self, step: int, loss: float, far: float, samples: list[Tensor]) -> None:
        new = not self.path.exists()
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a", newline="") as file:
            writer = csv.writer(file)
            if new:
                writer.writerow(self.COLUMNS)
            numbers = " ".join(str(number) for part in samples for number in part.tolist())
            writer.writerow([step, repr(loss), repr(math.exp(self.mean)), f"{far:.1f}", numbers])

"""What the training data really was: the sources' realised shares, and how many samples others stood in for."""

from __future__ import annotations

from typing import Any

import lightning
import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor


class DataReport(Callback):
    """Log ``data/share/<source>`` (of several sources) and ``data/skipped``, counted since the run's first step.

    Args:
        every: steps between log entries.
    """

    def __init__(self, every: int) -> None:
        self.every = every
        self.drawn: list[int] = []
        self.skipped = 0
        self._here: Tensor | None = None  # this rank's, since the ranks last told one another: by source, and skipped
        self._trainer: lightning.Trainer | None = None
        self._logged = -1

    def state_dict(self) -> dict[str, Any]:
        self._gather()  # every rank saves
        return {"drawn": self.drawn, "skipped": self.skipped}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.drawn, self.skipped = list(state_dict["drawn"]), int(state_dict["skipped"])

    def on_train_batch_end(
        self,
        trainer: lightning.Trainer,
        pl_module: lightning.LightningModule,
        outputs: Any,
        batch: dict[str, Any],
        batch_idx: int,
    ) -> None:
        names = trainer.datamodule.source_names  # type: ignore[attr-defined]
        counts = torch.cat(
            [torch.bincount(batch["source"].flatten(), minlength=len(names)), batch["skipped"].sum()[None]]
        )
        self._here = counts if self._here is None else self._here + counts
        self._trainer = trainer
        step = trainer.global_step
        if not step or step % self.every or step == self._logged:
            return
        self._logged = step
        self._gather()
        if not trainer.is_global_zero:
            return
        metrics = {"data/skipped": float(self.skipped)}
        if len(names) > 1:
            metrics |= {f"data/share/{name}": n / sum(self.drawn) for name, n in zip(names, self.drawn, strict=True)}
        for logger in trainer.loggers:
            logger.log_metrics(metrics, step=step)

    def _gather(self) -> None:
        """Add what all ranks have counted since the last time, so that a resume with other ranks goes on counting."""
        if self._here is None or self._trainer is None:
            return
        counts, self._here = self._here, torch.zeros_like(self._here)
        if self._trainer.world_size > 1:
            on_device = counts.to(self._trainer.strategy.root_device)
            counts = self._trainer.strategy.reduce(on_device, reduce_op="sum")
        *drawn, skipped = counts.tolist()
        self.drawn = [old + new for old, new in zip(self.drawn or [0] * len(drawn), drawn, strict=True)]
        self.skipped += skipped

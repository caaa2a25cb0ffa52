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
        self._logged = -1

    def state_dict(self) -> dict[str, Any]:
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
        # All ranks' together, so that a resume with another number of ranks goes on counting.
        counts = torch.cat(
            [torch.bincount(batch["source"].flatten(), minlength=len(names)), batch["skipped"].sum()[None]]
        )
        total: Tensor = trainer.strategy.reduce(counts, reduce_op="sum")
        *drawn, skipped = total.tolist()
        self.drawn = [old + new for old, new in zip(self.drawn or [0] * len(names), drawn, strict=True)]
        self.skipped += skipped
        step = trainer.global_step
        if not step or step % self.every or step == self._logged or not trainer.is_global_zero:
            return
        self._logged = step
        metrics = {"data/skipped": float(self.skipped)}
        if len(names) > 1:
            metrics |= {f"data/share/{name}": n / sum(self.drawn) for name, n in zip(names, self.drawn, strict=True)}
        for logger in trainer.loggers:
            logger.log_metrics(metrics, step=step)

"""The loss of a whole step, from what Lightning hands to callbacks after each micro-batch."""

from __future__ import annotations

from typing import Any

import lightning
from torch import Tensor


class StepLoss:
    """Adds up what the micro-batches of a step return: Lightning has divided each loss by their number.

    Without accumulation it is the loss as it is. It is this process's: no other one is asked.
    """

    def __init__(self) -> None:
        self._sum: Tensor | None = None
        self._step = 0

    def begin(self, trainer: lightning.Trainer) -> None:
        """At the start of training."""
        self._sum, self._step = None, trainer.global_step

    def add(self, trainer: lightning.Trainer, outputs: Any) -> Tensor | None:
        """Take in a micro-batch after it has run.

        Args:
            trainer: whose count of steps tells where one ends.
            outputs: of the training step, as ``on_train_batch_end`` is told them.

        Returns:
            The loss of the step that ends with it, a scalar on its device; None in the middle of one.
        """
        loss = outputs["loss"].detach()
        self._sum = loss if self._sum is None else self._sum + loss
        if trainer.global_step == self._step:
            return None
        whole, self._sum, self._step = self._sum, None, trainer.global_step
        return whole

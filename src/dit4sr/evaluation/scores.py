"""Values image by image, gathered exactly from any number of processes: torchmetrics around the metrics.

torchmetrics' own image metrics keep sums, which processes add in another order, and count an image twice that two
processes saw. Here every value is kept with the number of what it belongs to, so a gathered mean is the mean over
distinct images in a fixed order, to the last digit.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torchmetrics
from torch import Tensor

from dit4sr.evaluation.metrics import Image8, Metric


class PerImageScore(torchmetrics.Metric):
    """A metric's values by image.

    ``update`` measures images, ``add`` takes a value that is known; ``compute`` gives the mean over distinct
    images, and ``per_image`` all values. With torch.distributed both are over all processes.

    Args:
        metric: what to measure; None where values are only added.
    """

    full_state_update = False
    is_differentiable = False
    index: list[Tensor]
    value: list[Tensor]

    def __init__(self, metric: Metric | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.metric = metric
        self.add_state("index", [], dist_reduce_fx="cat")
        self.add_state("value", [], dist_reduce_fx="cat")

    def update(self, restored: Sequence[Image8], truths: Sequence[Image8 | None], index: Sequence[int]) -> None:
        """Measure images, uint8 (H, W, 3) each, and keep their values under their numbers."""
        assert self.metric is not None, "a score without a metric can only be told values"
        for image, truth, number in zip(restored, truths, index, strict=True):
            self._keep(number, self.metric(image, truth))

    def add(self, number: int, value: float) -> None:
        """Keep a value that is known already, such as one of an earlier run."""
        self._update_count += 1
        self._computed = None
        self._keep(number, value)

    def compute(self) -> Tensor:
        """The mean over distinct images whose value is defined, float64; NaN where there is none."""
        defined = [v for v in self._values().values() if not math.isnan(v)]
        return torch.tensor(math.fsum(defined) / len(defined) if defined else math.nan, dtype=torch.float64)

    def per_image(self) -> dict[int, float]:
        """Number → value, by number, of all processes; an image that several have seen is there once."""
        # A process without an image takes part in the gathering too.
        for state, dtype in (("index", torch.int64), ("value", torch.float64)):
            if not getattr(self, state):
                setattr(self, state, [torch.zeros(0, dtype=dtype)])
        with self.sync_context():
            return self._values()

    def _keep(self, number: int, value: float) -> None:
        self.index.append(torch.tensor([number], dtype=torch.int64))
        self.value.append(torch.tensor([value], dtype=torch.float64))

    def _values(self) -> dict[int, float]:
        found: dict[int, float] = {}
        for numbers, values in zip(_parts(self.index), _parts(self.value), strict=True):
            for number, value in zip(numbers.tolist(), values.tolist(), strict=True):
                found.setdefault(number, value)
        return dict(sorted(found.items()))


def _parts(state: list[Tensor] | Tensor) -> list[Tensor]:
    """A list state, which torchmetrics turns into one tensor when it gathers."""
    return [state] if isinstance(state, Tensor) else list(state)

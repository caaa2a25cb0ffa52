"""Rounding that lets gradients through, for whoever differentiates the degradation of a batch."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


class _Rounding(torch.autograd.Function):
    """The straight-through estimator (arXiv 1308.3432): rounding's own derivative is 0 almost everywhere."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return torch.round(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return gradients[0]


def rounded(x: Tensor) -> Tensor:
    """Round to the nearest whole numbers, half to even; gradients pass as if nothing had been rounded."""
    return torch.round(x) if not x.requires_grad else _Rounding.apply(x)


def to_levels(image: Tensor) -> Tensor:
    """Clip to [0, 1] and round to steps of 1/255; gradients pass where nothing is clipped."""
    return rounded(image.clamp(0, 1) * 255) / 255

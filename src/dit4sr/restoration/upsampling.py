"""Bicubic upsampling of any part of an image, so that the whole upsampled image is never in memory."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from dit4sr.images import to_unit

KEYS_A = -0.75
"""a of Keys' cubic kernel, as :func:`dit4sr.images.upsample_bicubic` has it."""


def reflected(n: Tensor, size: int) -> Tensor:
    """Positions beyond the end of ``size`` pixels, folded back into them by reflection as often as it takes.

    Args:
        n: whole numbers, at least 0.
        size: at least 1; the last pixel is not repeated.
    """
    if size == 1:
        return torch.zeros_like(n)
    n = n % (2 * (size - 1))
    return torch.where(n < size, n, 2 * (size - 1) - n)


@dataclass(frozen=True, eq=False)
class Upsampled:
    """An image upsampled bicubically and continued by reflection to the right and below, computed on demand.

    Its values are those of :func:`dit4sr.images.upsample_bicubic`, to float32's precision.

    Args:
        lq: (B, 3, h, w), uint8, or floating point in [0, 1].
        height, width: of the upsampled image.
    """

    lq: Tensor = field(repr=False)
    height: int
    width: int

    def part(self, rows: slice, columns: slice) -> Tensor:
        """(B, 3, rows, columns) float32 in [0, 1]; beyond height and width the reflection."""
        y, wy = self._taps(rows, self.height, self.lq.shape[-2])
        x, wx = self._taps(columns, self.width, self.lq.shape[-1])
        top, left = int(y.min()), int(x.min())
        source = self.lq[..., top : int(y.max()) + 1, left : int(x.max()) + 1]
        source = to_unit(source) if source.dtype == torch.uint8 else source.float()
        across = _weighted(source, -1, x - left, wx)
        return _weighted(across, -2, y - top, wy[:, :, None]).clamp_(0, 1)

    def rows(self, first: int, last: int) -> Tensor:
        """Rows ``first`` to ``last`` − 1 in full width."""
        return self.part(slice(first, last), slice(0, self.width))

    def _taps(self, positions: slice, size: int, source: int) -> tuple[Tensor, Tensor]:
        """Of each position the four source pixels and their weights, (4, n) each (IEEE ASSP-29, 1153: equation 15)."""
        n = reflected(torch.arange(positions.start, positions.stop, device=self.lq.device), size)
        # In float32, and in this order, as torch has it: the two must agree.
        centre = torch.tensor(source, dtype=torch.float32) / size * (n + 0.5) - 0.5
        first = centre.floor()
        t = (centre - first).clamp(0, 1)
        a = KEYS_A

        def near(d: Tensor) -> Tensor:
            return ((a + 2) * d - (a + 3)) * d * d + 1

        def far(d: Tensor) -> Tensor:
            return ((a * d - 5 * a) * d + 8 * a) * d - 4 * a

        weights = torch.stack([far(t + 1), near(t), near(1 - t), far(2 - t)])
        index = first.long() + torch.arange(-1, 3, device=n.device)[:, None]
        return index.clamp(0, source - 1), weights


def _weighted(image: Tensor, dim: int, index: Tensor, weights: Tensor) -> Tensor:
    """Σ over the four taps of the pixels at ``index[tap]`` along ``dim`` times ``weights[tap]``."""
    total = image.index_select(dim, index[0]) * weights[0]
    for tap in range(1, 4):
        total.addcmul_(image.index_select(dim, index[tap]), weights[tap])
    return total

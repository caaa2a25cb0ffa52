"""Resizing and reflection of a batch whose images have different sizes, as index and weight arithmetic.

Shapes: B images; N source and M target length of one axis, both padded to the largest of the batch.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from dit4sr.data.degradations.presets import RESIZE_MODES
from dit4sr.data.transfer import to_device

_CUBIC_A = -0.75  # torch's and OpenCV's cubic convolution (Keys 1981 has -1/2)


def resize_matrices(modes: Sequence[str], sources: Tensor, targets: Tensor, n: int, m: int) -> Tensor:
    """Return (B, M, N) float32 matrices that resize one axis from sources (B,) to targets (B,) pixels.

    Each row holds the weights that torch's `interpolate(size=..., mode=..., align_corners=False)` gives the
    source pixels. Rows past an image's target size are finite and mean nothing.
    """
    device = sources.device
    matrices = torch.zeros(len(modes), m, n, device=device)
    for mode in RESIZE_MODES:
        chosen = [b for b, other in enumerate(modes) if other == mode]
        if not chosen:
            continue
        index = to_device(torch.tensor(chosen), device)
        build = _area_matrices if mode == "area" else _taps_matrices
        matrices[index] = build(mode, sources[index], targets[index], n, m)
    return matrices


def _area_matrices(mode: str, sources: Tensor, targets: Tensor, n: int, m: int) -> Tensor:
    i = torch.arange(m, device=sources.device)[None, :]
    j = torch.arange(n, device=sources.device)[None, None, :]
    source, target = sources[:, None], targets[:, None]
    start, end = i * source // target, -(-(i + 1) * source // target)  # (B, M)
    inside = (j >= start[..., None]) & (j < end[..., None])
    return inside.float() / (end - start)[..., None]


def _taps_matrices(mode: str, sources: Tensor, targets: Tensor, n: int, m: int) -> Tensor:
    i = torch.arange(m, device=sources.device)[None, :]
    source, target = sources[:, None], targets[:, None]
    # The source position (i + 1/2) * source / target - 1/2 as a fraction of integers, so that it is exact.
    numerator, denominator = (2 * i + 1) * source - target, 2 * target
    if mode == "bilinear":
        numerator = numerator.clamp(min=0)
    base = numerator // denominator
    t = (numerator - base * denominator).float() / denominator.float()  # in [0, 1)
    if mode == "bilinear":
        taps = [(0, 1 - t), (1, t)]
    else:
        taps = [(-1, _far(1 + t)), (0, _near(t)), (1, _near(1 - t)), (2, _far(2 - t))]
    matrices = torch.zeros(len(sources), m, n, device=sources.device)
    for offset, weight in taps:
        tap = torch.minimum((base + offset).clamp(min=0), source - 1)  # the border pixel is repeated
        matrices.scatter_add_(2, tap[..., None], weight[..., None])
    return matrices


def _near(x: Tensor) -> Tensor:
    """Cubic convolution at distances 0..1."""
    return ((_CUBIC_A + 2) * x - (_CUBIC_A + 3)) * x * x + 1


def _far(x: Tensor) -> Tensor:
    """Cubic convolution at distances 1..2."""
    return ((_CUBIC_A * x - 5 * _CUBIC_A) * x + 8 * _CUBIC_A) * x - 4 * _CUBIC_A


def reflected(length: int, radius: int, sizes: Tensor) -> Tensor:
    """Return (B, length + 2 radius) indices of an axis of images of (B,) sizes, padded by reflection
    without the edge pixel.

    Where an image is smaller than the radius, the reflection goes on to and fro.
    """
    i = torch.arange(-radius, length + radius, device=sizes.device)[None, :]
    size = sizes[:, None]
    period = (2 * (size - 1)).clamp(min=1)
    i = i.remainder(period)
    return torch.where(i < size, i, period - i)


def repeated(length: int, sizes: Tensor) -> Tensor:
    """Return (B, length) indices of an axis of (B,) sizes padded at its end by the border pixel."""
    i = torch.arange(length, device=sizes.device)[None, :]
    return torch.minimum(i, sizes[:, None] - 1)


def take(image: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Return every image of (B, C, H, W) at its own rows (B, H') and columns (B, W'): (B, C, H', W')."""
    b, c, _, w = image.shape
    height, width = rows.shape[1], columns.shape[1]
    image = image.gather(2, rows[:, None, :, None].expand(b, c, height, w))
    return image.gather(3, columns[:, None, None, :].expand(b, c, height, width))

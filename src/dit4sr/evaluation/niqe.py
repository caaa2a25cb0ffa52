"""NIQE (Mittal et al., 2013) with the two float32 steps of pyiqa's that the machine decides written out.

pyiqa rounds luma to whole levels after a matrix product, and halves the image by a sum of ten products, both in
float32. The order of those sums is the machine's, ties of luma (x.500) fall by the last bit, and NIQE's features
answer: on photos its third decimal moves. The published logs come from GPUs. Here both sums are in the order of
PyTorch's CUDA kernels, spelt out in operations that every processor rounds alike, so the number is the same anywhere.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dit4sr.evaluation.fidelity import Image8

WEIGHTS = tuple(float(np.float32(w)) for w in (0.299, 0.587, 0.114))
"""Of full-range luma (YIQ's Y)."""

UNIT = float(np.float32(1 / 255))
"""8-bit images enter as x · (1/255) in float32, which is how PyTorch divides on a GPU."""

ACCUMULATORS = 4
"""Partial sums of a thread in PyTorch's CUDA reductions: term i goes to number i mod 4."""


def niqe(network: Any, image: Image8) -> float:
    """NIQE of an image; lower is better.

    Args:
        network: pyiqa's NIQE module, which holds the parameters of pristine photos.
        image: uint8 (H, W, 3), RGB, sides of at least 96.
    """
    from pyiqa.archs import niqe_arch

    levels = torch.from_numpy(luma_levels(image)).double()[None, None]
    pristine = [parameter.double()[None] for parameter in (network.mu_pris_param, network.cov_pris_param)]
    before = niqe_arch.imresize
    niqe_arch.imresize = halved  # it is looked up when NIQE is called
    try:
        return float(niqe_arch.niqe(levels, *pristine))
    finally:
        niqe_arch.imresize = before


def luma_levels(image: Image8) -> NDArray[np.float32]:
    """uint8 (H, W, 3) → luma (H, W) in whole levels 0..255, as float32.

    R, G and B are added in turn by fused multiply-adds, as cuBLAS does. A product of two float32 is exact in float64,
    so rounding the sum of it to float32 is the fused operation.
    """
    x = image.astype(np.float32) * np.float32(UNIT)
    total = x[..., 0] * np.float32(WEIGHTS[0])
    for channel in (1, 2):
        product = x[..., channel].astype(np.float64) * WEIGHTS[channel]
        total = (product + total).astype(np.float32)
    return np.rint(total * np.float32(255))


def halved(image: Tensor, scale: float, antialiasing: bool) -> Tensor:
    """Halve (1, 1, H, W) float64 by MATLAB's antialiased bicubic filter in float32; borders are mirrored.

    In place of pyiqa's ``imresize``, for the one call that NIQE makes: H and W are even.
    """
    assert scale == 0.5 and antialiasing, "NIQE halves images"
    small = image.float()
    for dim in (2, 3):
        small = _halved_along(small, dim)
    return small.double()


def _halved_along(x: Tensor, dim: int) -> Tensor:
    """The output at i is Σ_k w(k − 4.5) x(2i + k − 4): ten taps, of which the outer ones are 0."""
    taps = np.arange(10) - 4.5
    weights = [float(w) for w in _cubic(np.abs(taps) / 2) / 2]  # multiples of 1/256 that sum to 1: exact in float32
    margin, length = 4, x.shape[dim]
    index = torch.arange(-margin, length + margin)
    index = torch.where(index < 0, -1 - index, index)
    index = torch.where(index >= length, 2 * length - 1 - index, index)
    padded = x.index_select(dim, index)
    terms = [padded.index_select(dim, torch.arange(k, k + length, 2)) * weights[k] for k in range(10)]
    partial = terms[:ACCUMULATORS]
    for k in range(ACCUMULATORS, 10):
        partial[k % ACCUMULATORS] = partial[k % ACCUMULATORS] + terms[k]
    total = partial[0]
    for other in partial[1:]:
        total = total + other
    return total


def _cubic(x: NDArray[np.float64]) -> NDArray[np.float64]:
    """Keys' cubic convolution (1981), a = −1/2, at distances x."""
    near = 1.5 * x**3 - 2.5 * x**2 + 1
    far = -0.5 * x**3 + 2.5 * x**2 - 4 * x + 2
    return np.where(x <= 1, near, np.where(x <= 2, far, 0.0))

"""Blur and sinc kernels, on a grid of integer offsets from the centre, normalised to sum 1.

With q(x) = x^T Sigma^-1 x and Sigma = R diag(sigma_x^2, sigma_y^2) R^T (arXiv 2107.10833, section 3.1):
Gaussian exp(-q/2), generalised Gaussian exp(-q^beta / 2), plateau 1 / (1 + q^beta), and the low-pass filter
of section 3.4, cutoff * J1(cutoff * r) / (2 pi r).
"""

from __future__ import annotations

import math
from functools import cache

import numpy as np
from numpy.typing import NDArray
from scipy.special import j1

from dit4sr.data.degradations.parameters import KernelParameters
from dit4sr.data.degradations.presets import MAX_KERNEL_SIZE

Kernel = NDArray[np.float32]


@cache
def _offsets(size: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """x (1, size) and y (size, 1) offsets from the centre, in pixels."""
    axis = np.arange(size, dtype=np.float64) - (size - 1) / 2
    return axis[None, :], axis[:, None]


def make_kernel(parameters: KernelParameters) -> Kernel:
    """Return the kernel of the parameters, (size, size) float32, sum 1."""
    if parameters.family == "sinc":
        return sinc_kernel(parameters.size, parameters.cutoff)
    x, y = _offsets(parameters.size)
    inverse_x, inverse_y = parameters.sigma_x**-2, parameters.sigma_y**-2
    cos, sin = math.cos(parameters.rotation), math.sin(parameters.rotation)
    # The three entries of Sigma^-1 = R diag(1/sigma^2) R^T.
    xx = cos * cos * inverse_x + sin * sin * inverse_y
    yy = sin * sin * inverse_x + cos * cos * inverse_y
    xy = cos * sin * (inverse_x - inverse_y)
    q = xx * x * x + yy * y * y + 2 * xy * x * y
    if parameters.family.startswith("plateau"):
        kernel = 1 / (1 + q**parameters.beta)
    elif parameters.family.startswith("generalized"):
        kernel = np.exp(-0.5 * q**parameters.beta)
    else:
        kernel = np.exp(-0.5 * q)
    return (kernel / kernel.sum()).astype(np.float32)


@cache
def _radii(size: int) -> tuple[NDArray[np.float64], NDArray[np.intp]]:
    """Distinct distances from the centre (0 left out, first) and each cell's index into [0, *distances]."""
    x, y = _offsets(size)
    squares, index = np.unique(x * x + y * y, return_inverse=True)
    return np.sqrt(squares[1:]), index.reshape(size, size)


def sinc_kernel(size: int, cutoff: float) -> Kernel:
    """Return the circular low-pass filter of angular frequency `cutoff`, (size, size) float32, sum 1."""
    r, index = _radii(size)
    values = np.empty(len(r) + 1)
    values[0] = cutoff**2 / (4 * math.pi)  # the limit at the centre, since J1(t) ~ t/2
    values[1:] = cutoff * j1(cutoff * r) / (2 * math.pi * r)
    kernel = values[index]
    return (kernel / kernel.sum()).astype(np.float32)


def pad_kernel(kernel: Kernel) -> Kernel:
    """Zero-pad a kernel to 21 x 21, so that kernels of several images can be stacked."""
    margin = (MAX_KERNEL_SIZE - kernel.shape[0]) // 2
    return np.pad(kernel, margin)

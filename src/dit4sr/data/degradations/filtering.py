"""Filtering an image with a kernel, in the cheapest form that gives the same result.

Most drawn kernels are wide and nearly zero at the border, or nearly of low rank: a Gaussian is the product of two
one-dimensional filters, and most others are a sum of a few such products (their singular value decomposition).
What is left out weighs at most ``TOLERANCE``, a few thousandths of an 8-bit level.
"""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from dit4sr.data.degradations.kernels import Kernel

Image = NDArray[np.float32]

TOLERANCE = 2e-5  # of the kernel's absolute weight, for cutting the border off and again for low rank
MAX_DIRECT = 11  # taps a side above which OpenCV goes over to the Fourier transform, at a constant price


def filter_image(image: Image, kernel: Kernel) -> Image:
    """Correlate (H, W, 3) float32 with a square kernel; the border is a reflection without the edge pixel.

    Where the image is smaller than the kernel's radius the reflection goes on to and fro.
    """
    kernel = trimmed(kernel)
    columns, rows = separable_terms(kernel)
    if len(rows) * _separable_cost(len(kernel)) >= _direct_cost(len(kernel)):
        return _filter2d(image, kernel)
    filtered = _separable(image, rows[0], columns[0])
    for row, column in zip(rows[1:], columns[1:], strict=True):
        filtered += _separable(image, row, column)
    return filtered


def _filter2d(image: Image, kernel: Kernel) -> Image:
    return np.asarray(cv2.filter2D(image, cv2.CV_32F, kernel, borderType=cv2.BORDER_REFLECT_101), np.float32)


def _separable(image: Image, row: Kernel, column: Kernel) -> Image:
    filtered = cv2.sepFilter2D(image, cv2.CV_32F, row, column, borderType=cv2.BORDER_REFLECT_101)
    return np.asarray(filtered, np.float32)


def trimmed(kernel: Kernel) -> Kernel:
    """The smallest centre of a kernel outside which there is at most ``TOLERANCE`` of its absolute weight."""
    weight = np.abs(kernel)
    centre = len(kernel) // 2
    # Weight of the square rings around the centre, from the outermost inwards.
    axis = np.abs(np.arange(len(kernel)) - centre)
    rings = np.bincount(np.maximum(axis[:, None], axis[None, :]).ravel(), weight.ravel())
    left_out = np.cumsum(rings[::-1])
    cut = int((left_out <= TOLERANCE * left_out[-1]).sum())
    return kernel[cut : len(kernel) - cut, cut : len(kernel) - cut]


def separable_terms(kernel: Kernel) -> tuple[list[Kernel], list[Kernel]]:
    """Columns and rows whose outer products sum to the kernel, up to ``TOLERANCE`` of its absolute weight."""
    u, s, v = np.linalg.svd(kernel.astype(np.float64))
    weights = s * np.abs(u).sum(axis=0) * np.abs(v).sum(axis=1)  # absolute weight of each term
    left_out = np.cumsum(weights[::-1])[::-1]
    rank = max(1, int((left_out > TOLERANCE).sum()))
    scale = np.sqrt(s[:rank])
    columns, rows = (u[:, :rank] * scale).T.astype(np.float32), (v[:rank].T * scale).T.astype(np.float32)
    return list(columns), list(rows)


def _separable_cost(size: int) -> float:
    """Of one term, in the milliseconds of a 512x512 image on one core."""
    return 0.5 + 0.06 * size


def _direct_cost(size: int) -> float:
    return 0.1 + 0.023 * size * size if size <= MAX_DIRECT else 11.0

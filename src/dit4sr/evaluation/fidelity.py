"""PSNR, SSIM and gradient energy of 8-bit images in plain NumPy: training's validation works without pyiqa.

They are the published protocol's: BT.601 luma of [16, 235], no border cut. A test holds them to pyiqa's values.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import correlate1d

Image8 = NDArray[np.uint8]

WINDOW, SIGMA = 11, 1.5
"""Side in pixels and standard deviation of SSIM's Gaussian window (Wang et al., 2004)."""

C1, C2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
"""SSIM's constants for a data range of 255."""

PSNR_FLOOR = 1e-8
"""Added to the mean squared error on [0, 1], so that equal images have 80 dB; pyiqa's."""


def luma(image: Image8) -> NDArray[np.float64]:
    """uint8 RGB (…, 3) → BT.601 luma (…), on the scale of [16, 235], unrounded."""
    return image.astype(np.float64) @ np.array([65.481, 128.553, 24.966]) / 255 + 16


def psnr_y(restored: Image8, truth: Image8) -> float:
    """PSNR in dB on BT.601 luma, peak 255, no border cut; 80 for equal images.

    Raises:
        ValueError: for images of different sizes.
    """
    check_sizes(restored, truth)
    error = float(np.mean(np.square((luma(restored) - luma(truth)) / 255)))
    return -10 * math.log10(error + PSNR_FLOOR)


def ssim_y(restored: Image8, truth: Image8) -> float:
    """SSIM (Wang et al., 2004) on BT.601 luma rounded to 8 bits, over the windows that lie inside the image.

    Negative contrast-structure terms count as 0, as in pyiqa.

    Raises:
        ValueError: for images of different sizes, or smaller than the window.
    """
    check_sizes(restored, truth)
    if min(truth.shape[:2]) < WINDOW:
        raise ValueError(f"image of {truth.shape[:2]}: ssim needs {WINDOW} pixels a side")
    x, y = np.rint(luma(restored)), np.rint(luma(truth))
    mean_x, mean_y = _window_mean(x), _window_mean(y)
    variances = _window_mean(x * x) + _window_mean(y * y) - mean_x**2 - mean_y**2
    covariance = _window_mean(x * y) - mean_x * mean_y
    structure = np.maximum((2 * covariance + C2) / (variances + C2), 0)
    return float(np.mean((2 * mean_x * mean_y + C1) / (mean_x**2 + mean_y**2 + C1) * structure))


def gradient_energy(restored: Image8, truth: Image8) -> float:
    """Gradient energy of the restored image relative to the ground truth's: a measure of sharpness.

    The energy is the mean squared forward difference of BT.601 luma, E(Y) = ⟨(Y[i, j+1] − Y[i, j])²⟩ +
    ⟨(Y[i+1, j] − Y[i, j])²⟩, each mean over the differences there are; the value is E(restored) / E(truth).
    1 is as much fine detail as the ground truth has, below 1 too smooth, above 1 too rough. It does not say
    whether the detail is right.

    Returns:
        The ratio, at least 0; NaN for a flat ground truth.
    """
    energy, reference = _energy(luma(restored)), _energy(luma(truth))
    return energy / reference if reference > 0 else float("nan")


def check_sizes(restored: Image8, truth: Image8) -> None:
    """Refuse images of different sizes by a ValueError."""
    if restored.shape != truth.shape:
        raise ValueError(f"images of {restored.shape} and {truth.shape} cannot be compared")


def _window_mean(x: NDArray[np.float64]) -> NDArray[np.float64]:
    offsets = np.arange(WINDOW) - WINDOW // 2
    weights = np.exp(-(offsets**2) / (2 * SIGMA**2))
    weights /= weights.sum()
    inner = slice(WINDOW // 2, -(WINDOW // 2))
    return correlate1d(correlate1d(x, weights, axis=0), weights, axis=1)[inner, inner]


def _energy(y: NDArray[np.float64]) -> float:
    return float(np.square(np.diff(y, axis=0)).mean() + np.square(np.diff(y, axis=1)).mean())

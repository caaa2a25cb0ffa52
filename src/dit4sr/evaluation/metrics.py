"""Metrics against the ground truth, each with the protocol that its number depends on.

Images are uint8 (H, W, 3), RGB. PSNR and SSIM are pyiqa's; the published numbers of this family are those
of protocol ``ycbcr`` with border 0. The other protocols differ by up to 1.6 dB on the same files, so every
row of a table states its own.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from dit4sr.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor

Image8 = NDArray[np.uint8]
Better = Literal["higher", "lower", "one"]
"""Which values are better: high ones, low ones, or those near 1."""

LEAST_SIDE = 11
"""Pixels: the side of SSIM's window."""


@dataclass(frozen=True)
class Protocol:
    """On what PSNR and SSIM are computed.

    Attributes:
        channel: Y or RGB.
        options: pyiqa's, that choose it.
    """

    channel: str
    options: Mapping[str, Any]


PROTOCOLS: Mapping[str, Protocol] = {
    # BT.601 luma in [16, 235]: the published one.
    "ycbcr": Protocol("Y", {"test_y_channel": True, "color_space": "ycbcr"}),
    # Full-range luma, pyiqa's default: 20·log10(255/219) = 1.32 dB lower.
    "yiq": Protocol("Y", {"test_y_channel": True, "color_space": "yiq"}),
    "rgb": Protocol("RGB", {"test_y_channel": False}),
}


@dataclass(frozen=True)
class Metric:
    """A metric with its protocol.

    Attributes:
        name: in tables and files.
        better: see :data:`Better`.
        digits: after the point, in tables.
        protocol, channel, border: as stated in every row.
        score: (restored, ground truth), uint8 (H, W, 3) of one size → the value.
    """

    name: str
    better: Better
    digits: int
    protocol: str
    channel: str
    border: int
    score: Callable[[Image8, Image8], float] = field(repr=False, compare=False)

    def __call__(self, restored: Image8, truth: Image8) -> float:
        """The value for one image, its border cut off first.

        Raises:
            ValueError: for images of different sizes.
        """
        if restored.shape != truth.shape:
            raise ValueError(f"images of {restored.shape} and {truth.shape} cannot be compared")
        b = self.border
        if b:
            restored, truth = restored[b:-b, b:-b], truth[b:-b, b:-b]
        return self.score(restored, truth)


def build_metrics(config: Mapping[str, Any]) -> tuple[Metric, ...]:
    """The metrics of configs/metrics, in its order.

    Raises:
        UserError: for an unknown metric or protocol, a negative border, or where pyiqa is not installed.
    """
    protocol, border = config["protocol"], config["border"]
    if protocol not in PROTOCOLS:
        raise UserError(f"metrics.protocol={protocol!r}: choose one of {', '.join(PROTOCOLS)}")
    if border < 0:
        raise UserError(f"metrics.border={border}: give the number of pixels to cut off, 0 or more")
    known = {
        "psnr": Metric("psnr", "higher", 2, protocol, PROTOCOLS[protocol].channel, border, _by_pyiqa("psnr", protocol)),
        "ssim": Metric("ssim", "higher", 4, protocol, PROTOCOLS[protocol].channel, border, _by_pyiqa("ssim", protocol)),
        "gradient_energy": Metric("gradient_energy", "one", 3, "ycbcr", "Y", border, gradient_energy),
    }
    if unknown := [name for name in config["names"] if name not in known]:
        raise UserError(f"metrics: unknown {', '.join(unknown)}; there are {', '.join(known)}")
    pyiqa_version()
    return tuple(known[name] for name in config["names"])


def psnr_y(restored: Image8, truth: Image8) -> float:
    """PSNR in dB on BT.601 luma of [0, 1], no border cut; 80 for equal images."""
    return _by_pyiqa("psnr", "ycbcr")(restored, truth)


def ssim_y(restored: Image8, truth: Image8) -> float:
    """SSIM on BT.601 luma rounded to 8 bits: 11×11 Gaussian window of σ 1.5, no border cut."""
    return _by_pyiqa("ssim", "ycbcr")(restored, truth)


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


def luma(image: Image8) -> NDArray[np.float64]:
    """uint8 RGB (…, 3) → BT.601 luma (…), on the scale of [16, 235], unrounded."""
    return image.astype(np.float64) @ np.array([65.481, 128.553, 24.966]) / 255 + 16


def _energy(y: NDArray[np.float64]) -> float:
    return float(np.square(np.diff(y, axis=0)).mean() + np.square(np.diff(y, axis=1)).mean())


def pyiqa_version() -> str:
    """The version of pyiqa.

    Raises:
        UserError: where it is not installed.
    """
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("pyiqa")
    except PackageNotFoundError as error:
        raise UserError('the metrics need pyiqa: pip install "pyiqa>=0.1.16" "setuptools<81"') from error


def _by_pyiqa(name: str, protocol: str) -> Callable[[Image8, Image8], float]:
    def score(restored: Image8, truth: Image8) -> float:
        if min(truth.shape[:2]) < LEAST_SIDE:
            raise ValueError(f"image of {truth.shape[:2]}: {name} needs {LEAST_SIDE} pixels a side")
        return float(_pyiqa_metric(name, protocol)(_unit(restored), _unit(truth)))

    return score


@cache
def _pyiqa_metric(name: str, protocol: str) -> Any:
    pyiqa_version()
    try:
        from pyiqa import create_metric  # late: it takes seconds, and only evaluation needs it
    except ImportError as error:
        raise UserError(f'pyiqa cannot be imported ({error}): pip install "pyiqa>=0.1.16" "setuptools<81"') from error
    logging.getLogger("pyiqa").setLevel(logging.WARNING)  # it tells of every metric that it makes
    return create_metric(name, device="cpu", **PROTOCOLS[protocol].options)


def _unit(image: Image8) -> Tensor:
    from dit4sr.images import from_hwc

    return from_hwc(image)

"""Everything random about one image's degradation except the noise's own values, drawn once from its seed."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Literal, TypeVar

import numpy as np

from dit4sr.data.degradations.presets import DegradationPreset, Range, as_preset
from dit4sr.errors import UserError

T = TypeVar("T")

SCALE = 4  # HR pixels an LQ pixel, in each direction

# Streams of one seed, so that more draws in one cannot shift another.
_PARAMETERS, _WORKER_NOISE, _DEVICE_NOISE = 0, 1, 2
_DRAWS = 64  # uniform numbers reserved for the parameters of one image


@dataclass(frozen=True)
class KernelParameters:
    """One 2-D filter. `family` is one of the preset's kernel families, or "sinc".

    `size` is odd; sigmas are in pixels; `rotation` in radians; `beta` is the shape of generalised and plateau
    kernels; `cutoff` is the angular frequency of a sinc. What a family does not use is 0.
    """

    family: str
    size: int
    sigma_x: float = 0.0
    sigma_y: float = 0.0
    rotation: float = 0.0
    beta: float = 0.0
    cutoff: float = 0.0


@dataclass(frozen=True)
class ResizeParameters:
    """A resize to height x width pixels; `mode` is area, bilinear or bicubic."""

    mode: str
    height: int
    width: int


@dataclass(frozen=True)
class NoiseParameters:
    """Noise of one image: `strength` is sigma in [0, 1] for gaussian, the factor on the noise for poisson."""

    kind: Literal["gaussian", "poisson"]
    gray: bool
    strength: float


@dataclass(frozen=True)
class DegradationParameters:
    """All that is drawn for one image; both engines run from this. A filter that is None is skipped."""

    usm_sharpen: bool
    blur1: KernelParameters
    resize1: ResizeParameters
    noise1: NoiseParameters
    jpeg1: int
    blur2: KernelParameters | None
    resize2: ResizeParameters
    noise2: NoiseParameters
    resize3: ResizeParameters
    sinc: KernelParameters | None
    jpeg2: int
    jpeg_last: bool


class _Draws:
    """Uniform numbers of one seed, consumed in a fixed order."""

    def __init__(self, seed: int) -> None:
        raw = bit_generator(seed, _PARAMETERS).random_raw(_DRAWS)
        # The 53-bit fraction of raw bits: NumPy promises stable bit streams, not stable distributions.
        self._values = iter(((raw >> np.uint64(11)) * 2.0**-53).tolist())

    def uniform(self, low: float, high: float) -> float:
        return low + (high - low) * next(self._values)

    def chance(self, probability: float) -> bool:
        return next(self._values) < probability

    def choice(self, options: Sequence[T], probabilities: Sequence[float] | None = None) -> T:
        u = next(self._values)
        if probabilities is None:
            return options[int(u * len(options))]
        for option, bound in zip(options, accumulate(probabilities), strict=True):
            if u < bound:
                return option
        return options[-1]


def bit_generator(seed: int, stream: int) -> np.random.PCG64:
    """Return the bit generator of one stream of an image's seed (a non-negative integer)."""
    try:
        return np.random.PCG64((stream, int(seed)))
    except ValueError as error:
        raise UserError(f"seed={seed!r} of a degradation must be a non-negative integer.") from error


def worker_noise(seed: int) -> np.random.Generator:
    """Return the NumPy generator of the noise's values."""
    return np.random.Generator(bit_generator(seed, _WORKER_NOISE))


def device_noise_seed(seed: int) -> int:
    """Return the 63-bit seed of the torch generator of the noise's values."""
    return int(bit_generator(seed, _DEVICE_NOISE).random_raw()) >> 1


def draw_parameters(preset: str | DegradationPreset, seed: int, height: int, width: int) -> DegradationParameters:
    """Draw the parameters of one image of height x width pixels.

    Every decision reads its own number of the seed's stream whether or not it is used, so the draws of two
    presets at one seed differ only where the presets do.

    Args:
        preset: a name of `configs/degradation`, or a preset.
        seed: non-negative integer; the result depends on nothing else.
        height, width: HR size in pixels, multiples of 4.
    """
    p = as_preset(preset)
    check_size(height, width)
    draws = _Draws(seed)
    h, w = height // SCALE, width // SCALE

    blur1 = _draw_kernel(draws, p, p.blur_sigma, p.betag_range, p.betap_range, p.sinc_prob)
    scale1 = _draw_scale(draws, p.resize_prob, p.resize_range)
    resize1 = ResizeParameters(draws.choice(p.resize_modes), max(1, int(height * scale1)), max(1, int(width * scale1)))
    noise1 = _draw_noise(draws, p.gaussian_noise_prob, p.gray_noise_prob, p.noise_range, p.poisson_scale_range)
    jpeg1 = round(draws.uniform(*p.jpeg_range))

    second_blur = draws.chance(p.second_blur_prob)
    blur2 = _draw_kernel(draws, p, p.blur_sigma2, p.betag_range2, p.betap_range2, p.sinc_prob2)
    scale2 = _draw_scale(draws, p.resize_prob2, p.resize_range2)
    resize2 = ResizeParameters(draws.choice(p.resize_modes), max(1, int(h * scale2)), max(1, int(w * scale2)))
    noise2 = _draw_noise(draws, p.gaussian_noise_prob2, p.gray_noise_prob2, p.noise_range2, p.poisson_scale_range2)
    jpeg2 = round(draws.uniform(*p.jpeg_range2))

    final_sinc = draws.chance(p.final_sinc_prob)
    sinc_size = draws.choice(p.kernel_sizes)
    sinc = KernelParameters("sinc", sinc_size, cutoff=draws.uniform(math.pi / 3, math.pi))
    return DegradationParameters(
        usm_sharpen=p.usm_sharpen,
        blur1=blur1,
        resize1=resize1,
        noise1=noise1,
        jpeg1=jpeg1,
        blur2=blur2 if second_blur else None,
        resize2=resize2,
        noise2=noise2,
        resize3=ResizeParameters(draws.choice(p.resize_modes), h, w),
        sinc=sinc if final_sinc else None,
        jpeg2=jpeg2,
        jpeg_last=draws.chance(0.5),
    )


def check_size(height: int, width: int) -> None:
    """Refuse HR sizes that have no LQ of a quarter."""
    if height < SCALE or width < SCALE or height % SCALE or width % SCALE:
        raise UserError(
            f"an image of {height}x{width} cannot be degraded x{SCALE}: crop it to positive multiples of {SCALE}."
        )


def _draw_kernel(
    draws: _Draws, preset: DegradationPreset, sigma: Range, betag: Range, betap: Range, sinc_prob: float
) -> KernelParameters:
    size = int(draws.choice(preset.kernel_sizes))
    is_sinc = draws.chance(sinc_prob)
    lowest = math.pi / 3 if size < 13 else math.pi / 5
    cutoff = draws.uniform(lowest, math.pi)
    family = draws.choice(preset.kernel_families, preset.kernel_probs)
    sigma_x, sigma_y = draws.uniform(*sigma), draws.uniform(*sigma)
    rotation = draws.uniform(-math.pi, math.pi)
    low, high = betap if family.startswith("plateau") else betag
    lower_half, u = draws.chance(0.5), draws.uniform(0, 1)
    beta = low + (1 - low) * u if lower_half else 1 + (high - 1) * u
    if is_sinc:
        return KernelParameters("sinc", size, cutoff=cutoff)
    if family.endswith("iso") and not family.endswith("aniso"):
        sigma_y, rotation = sigma_x, 0.0
    if not family.startswith(("generalized", "plateau")):
        beta = 0.0
    return KernelParameters(family, size, sigma_x, sigma_y, rotation, beta)


def _draw_scale(draws: _Draws, probabilities: Sequence[float], scale_range: Range) -> float:
    direction = draws.choice(("up", "down", "keep"), probabilities)
    u = draws.uniform(0, 1)
    low, high = scale_range
    return {"up": 1 + (high - 1) * u, "down": low + (1 - low) * u, "keep": 1.0}[direction]


def _draw_noise(draws: _Draws, gaussian_prob: float, gray_prob: float, sigma: Range, poisson: Range) -> NoiseParameters:
    gaussian, gray, u = draws.chance(gaussian_prob), draws.chance(gray_prob), draws.uniform(0, 1)
    low, high = sigma if gaussian else poisson
    strength = low + (high - low) * u
    if gaussian:
        return NoiseParameters("gaussian", gray, strength / 255)
    return NoiseParameters("poisson", gray, strength)

"""The degradation of a batch with torch on the tensor's device.

Each image keeps the parameters that its seed draws, so after the first resize the batch is ragged: image b
fills the top left `heights[b]` x `widths[b]` pixels of a common canvas, and every stage reads those pixels
alone. The stages are those of `worker`, which states their equations; only the noise's own values differ.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import cv2
import torch
import torch.nn.functional as F
from torch import Tensor

from dit4sr.data.degradations.batched_resize import reflected, resize_matrices, take
from dit4sr.data.degradations.codecs import Codec, find_codec
from dit4sr.data.degradations.kernels import make_kernel, pad_kernel
from dit4sr.data.degradations.parameters import (
    KernelParameters,
    NoiseParameters,
    ResizeParameters,
    check_size,
    device_noise_seed,
    draw_parameters,
)
from dit4sr.data.degradations.presets import MAX_KERNEL_SIZE, DegradationPreset, as_preset
from dit4sr.data.degradations.rounding import to_levels
from dit4sr.data.degradations.worker import LUMA, USM_SIZE, USM_THRESHOLD, USM_WEIGHT
from dit4sr.data.transfer import to_device
from dit4sr.errors import UserError


@dataclass(frozen=True)
class Ragged:
    """Images of different sizes on one canvas: pixels (B, 3, H, W), heights (B,) and widths (B,) int64."""

    pixels: Tensor
    heights: Tensor
    widths: Tensor
    sizes: tuple[tuple[int, int], ...]  # the same sizes on the host, to slice without waiting for the device

    @classmethod
    def of(cls, pixels: Tensor, sizes: Sequence[tuple[int, int]]) -> Ragged:
        heights, widths = to_device(torch.tensor(sizes), pixels.device).unbind(1)
        return cls(pixels, heights, widths, tuple(sizes))


def degrade_batch(
    hq: Tensor, preset: str | DegradationPreset, seeds: Sequence[int] | Tensor, *, jpeg: str = "libjpeg"
) -> tuple[Tensor, Tensor]:
    """Synthesise the low-quality images of a batch of photos; differentiable with respect to them.

    Args:
        hq: (B, 3, H, W) floating RGB in [0, 1], H and W positive multiples of 4.
        preset: a name of `configs/degradation`, or a preset.
        seeds: B non-negative integers. An image's result depends on its own seed alone, and its parameters
            are those that `degrade` draws from it.
        jpeg: the codec: "libjpeg" for this project's, which gives a real codec's result; "kornia" for kornia's
            differentiable one.

    Returns:
        hq: (B, 3, H, W) float32 in steps of 1/255, the target: sharpened where the preset sharpens.
        lq: (B, 3, H/4, W/4) float32 in steps of 1/255.

    Raises:
        UserError: a tensor of another type or shape, another number of seeds than images, or a codec that is
            not known or not installed.
    """
    if not isinstance(hq, Tensor) or hq.ndim != 4 or hq.shape[1] != 3 or not hq.is_floating_point():
        raise UserError("a batch to degrade must be a float RGB tensor (B, 3, H, W) in [0, 1]: convert it.")
    batch, _, height, width = hq.shape
    check_size(height, width)
    seeds = [int(seed) for seed in seeds]
    if len(seeds) != batch:
        raise UserError(f"{batch} images need {batch} seeds, not {len(seeds)}.")
    preset, codec = as_preset(preset), find_codec(jpeg)
    if batch == 0:
        return hq.float(), hq.new_zeros(0, 3, height // 4, width // 4, dtype=torch.float32)
    # Autocast would run the filters in half precision, TensorFloat-32 in eleven bits: too coarse for an 8-bit result.
    with torch.autocast(hq.device.type, enabled=False), whole_float32():
        return _degrade(hq.float().clamp(0, 1), preset, seeds, codec)


@contextmanager
def whole_float32() -> Iterator[None]:
    """Convolutions of cuDNN in float32 as it is; what else is set of cuDNN stays."""
    cudnn = torch.backends.cudnn
    flags = {name: getattr(cudnn, name) for name in ("enabled", "benchmark", "benchmark_limit", "deterministic")}
    with cudnn.flags(**flags, allow_tf32=False):
        yield


def _degrade(image: Tensor, preset: DegradationPreset, seeds: list[int], codec: Codec) -> tuple[Tensor, Tensor]:
    height, width = image.shape[2:]
    parameters = [draw_parameters(preset, seed, height, width) for seed in seeds]
    generators = [torch.Generator(image.device).manual_seed(device_noise_seed(seed)) for seed in seeds]
    if preset.usm_sharpen:
        image = sharpen(image)
    target = to_levels(image)

    x = Ragged.of(image, [(height, width)] * len(seeds))
    x = blur(x, [p.blur1 for p in parameters])
    x = resize(x, [p.resize1 for p in parameters])
    x = add_noise(x, [p.noise1 for p in parameters], generators)
    x = jpeg(x, [p.jpeg1 for p in parameters], range(len(seeds)), codec)

    x = blur(x, [p.blur2 for p in parameters])
    x = resize(x, [p.resize2 for p in parameters])
    x = add_noise(x, [p.noise2 for p in parameters], generators)

    qualities = [p.jpeg2 for p in parameters]
    x = jpeg(x, qualities, [b for b, p in enumerate(parameters) if not p.jpeg_last], codec)
    x = resize(x, [p.resize3 for p in parameters])
    x = blur(x, [p.sinc for p in parameters])
    x = jpeg(x, qualities, [b for b, p in enumerate(parameters) if p.jpeg_last], codec)
    return target, to_levels(x.pixels)


def sharpen(image: Tensor) -> Tensor:
    """Unsharp masking of (B, 3, H, W), as `worker.sharpen`."""
    residual = image - _usm_blur(image)
    mask = _usm_blur((residual.abs() > USM_THRESHOLD).float())
    sharp = (image + USM_WEIGHT * residual).clamp(0, 1)
    return image + mask * (sharp - image)


def _usm_blur(image: Tensor) -> Tensor:
    b, c, h, w = image.shape
    radius = USM_SIZE // 2
    taps = to_device(torch.from_numpy(cv2.getGaussianKernel(USM_SIZE, 0, cv2.CV_32F)), image.device).flatten()
    rows, columns = (reflected(n, radius, image.new_full((1,), n, dtype=torch.int64)).expand(b, -1) for n in (h, w))
    padded = take(image, rows, columns).flatten(0, 1)[:, None]  # (B*3, 1, H+50, W+50)
    blurred = F.conv2d(F.conv2d(padded, taps.view(1, 1, -1, 1)), taps.view(1, 1, 1, -1))
    return blurred.view(b, c, h, w)


def blur(x: Ragged, parameters: Sequence[KernelParameters | None]) -> Ragged:
    """Filter every image with its own kernel and reflected borders; None leaves an image as it is."""
    chosen = [b for b, p in enumerate(parameters) if p is not None]
    if not chosen:
        return x
    kernels = torch.stack([torch.from_numpy(pad_kernel(make_kernel(p))) for p in parameters if p is not None])
    index = to_device(torch.tensor(chosen), x.pixels.device)
    b, (h, w), radius = len(chosen), x.pixels.shape[2:], MAX_KERNEL_SIZE // 2
    rows = reflected(h, radius, x.heights[index])
    columns = reflected(w, radius, x.widths[index])
    padded = take(x.pixels[index], rows, columns).reshape(1, 3 * b, h + 2 * radius, w + 2 * radius)
    weights = to_device(kernels, padded.device).repeat_interleave(3, dim=0)[:, None]
    filtered = F.conv2d(padded, weights, groups=3 * b).view(b, 3, h, w)
    return Ragged(x.pixels.index_copy(0, index, filtered), x.heights, x.widths, x.sizes)


def resize(x: Ragged, parameters: Sequence[ResizeParameters]) -> Ragged:
    """Resize every image to its own size in its own mode, as two matrix products."""
    sizes = [(p.height, p.width) for p in parameters]
    target = Ragged.of(x.pixels, sizes)
    modes = [p.mode for p in parameters]
    height, width = max(h for h, _ in sizes), max(w for _, w in sizes)
    rows = resize_matrices(modes, x.heights, target.heights, x.pixels.shape[2], height)
    columns = resize_matrices(modes, x.widths, target.widths, x.pixels.shape[3], width)
    pixels = rows[:, None] @ x.pixels @ columns[:, None].transpose(2, 3)
    return Ragged(pixels, target.heights, target.widths, target.sizes)


def add_noise(x: Ragged, parameters: Sequence[NoiseParameters], generators: Sequence[torch.Generator]) -> Ragged:
    """Add each image's noise and clip to [0, 1], as `worker.add_noise`; to gradients the noise is a constant."""
    noisy = torch.zeros_like(x.pixels)
    for b, (p, generator, (h, w)) in enumerate(zip(parameters, generators, x.sizes, strict=True)):
        image = x.pixels[b, :, :h, :w]
        if p.kind == "gaussian":
            shape = (1 if p.gray else 3, h, w)
            noise = torch.randn(shape, device=image.device, generator=generator)
        else:
            luma = to_device(torch.tensor(LUMA), image.device)[:, None, None]
            source = (image * luma).sum(0, keepdim=True) if p.gray else image
            noise = poisson_noise(torch.round(source.detach().clamp(0, 1) * 255), generator)
        noisy[b, :, :h, :w] = (image + p.strength * noise).clamp(0, 1)
    return Ragged(noisy, x.heights, x.widths, x.sizes)


def poisson_noise(levels: Tensor, generator: torch.Generator) -> Tensor:
    """Return Poisson(image * v) / v - image of (C, H, W) levels 0..255, v = 2^ceil(log2(distinct levels))."""
    present = torch.zeros(256, device=levels.device)
    present[levels.long().flatten()] = 1
    v = torch.exp2(torch.ceil(torch.log2(present.sum()))).round()
    image = levels / 255
    return torch.poisson(image * v, generator=generator) / v - image


def jpeg(x: Ragged, qualities: Sequence[int], chosen: Sequence[int], codec: Codec) -> Ragged:
    """Send the chosen images of the batch through a JPEG round trip of their qualities."""
    if not chosen:
        return x
    index = to_device(torch.tensor(list(chosen)), x.pixels.device)
    coded = codec(x.pixels[index], x.heights[index], x.widths[index], [qualities[b] for b in chosen])
    return Ragged(x.pixels.index_copy(0, index, coded), x.heights, x.widths, x.sizes)

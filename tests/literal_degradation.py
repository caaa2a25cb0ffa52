"""The second-order degradation once more, written literally in plain torch: the reference of tests and benchmark.

One image at a time, two-dimensional filters, kernels filled cell by cell, parameters drawn from Python's own
generator: nothing is shared with the package but the preset's fields and the containers of the parameters.
"""

from __future__ import annotations

import io
import math
import random

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from scipy.special import j1
from torch import Tensor

from dit4sr.data.degradations import DegradationParameters, DegradationPreset
from dit4sr.data.degradations.parameters import KernelParameters, NoiseParameters, ResizeParameters


def draw(p: DegradationPreset, rng: random.Random, height: int, width: int) -> DegradationParameters:
    """Draw the parameters of one image."""

    def kernel(sigma, betag, betap, sinc_prob):
        size = rng.choice(p.kernel_sizes)
        if rng.random() < sinc_prob:
            return KernelParameters("sinc", size, cutoff=rng.uniform(math.pi / (3 if size < 13 else 5), math.pi))
        family = rng.choices(p.kernel_families, p.kernel_probs)[0]
        low, high = betap if "plateau" in family else betag
        beta = rng.uniform(low, 1) if rng.random() < 0.5 else rng.uniform(1, high)
        if "aniso" in family:
            return KernelParameters(
                family, size, rng.uniform(*sigma), rng.uniform(*sigma), rng.uniform(-math.pi, math.pi), beta
            )
        s = rng.uniform(*sigma)
        return KernelParameters(family, size, s, s, 0.0, beta)

    def scale(probabilities, low_high):
        direction = rng.choices(("up", "down", "keep"), probabilities)[0]
        if direction == "up":
            return rng.uniform(1, low_high[1])
        return rng.uniform(low_high[0], 1) if direction == "down" else 1.0

    def noise(gaussian_prob, gray_prob, sigma, poisson):
        gray = rng.random() < gray_prob
        if rng.random() < gaussian_prob:
            return NoiseParameters("gaussian", gray, rng.uniform(*sigma) / 255)
        return NoiseParameters("poisson", gray, rng.uniform(*poisson))

    s1, s2 = scale(p.resize_prob, p.resize_range), scale(p.resize_prob2, p.resize_range2)
    h, w = height // 4, width // 4
    final = KernelParameters("sinc", rng.choice(p.kernel_sizes), cutoff=rng.uniform(math.pi / 3, math.pi))
    return DegradationParameters(
        usm_sharpen=p.usm_sharpen,
        blur1=kernel(p.blur_sigma, p.betag_range, p.betap_range, p.sinc_prob),
        resize1=ResizeParameters(rng.choice(p.resize_modes), int(height * s1), int(width * s1)),
        noise1=noise(p.gaussian_noise_prob, p.gray_noise_prob, p.noise_range, p.poisson_scale_range),
        jpeg1=round(rng.uniform(*p.jpeg_range)),
        blur2=kernel(p.blur_sigma2, p.betag_range2, p.betap_range2, p.sinc_prob2)
        if rng.random() < p.second_blur_prob
        else None,
        resize2=ResizeParameters(rng.choice(p.resize_modes), int(h * s2), int(w * s2)),
        noise2=noise(p.gaussian_noise_prob2, p.gray_noise_prob2, p.noise_range2, p.poisson_scale_range2),
        resize3=ResizeParameters(rng.choice(p.resize_modes), h, w),
        sinc=final if rng.random() < p.final_sinc_prob else None,
        jpeg2=round(rng.uniform(*p.jpeg_range2)),
        jpeg_last=rng.random() < 0.5,
    )


def kernel_21(p: KernelParameters) -> Tensor:
    """The kernel of the parameters, zero-padded to 21 × 21."""
    half = p.size // 2
    kernel = np.zeros((21, 21))
    rotation = np.array([[math.cos(p.rotation), -math.sin(p.rotation)], [math.sin(p.rotation), math.cos(p.rotation)]])
    if p.family != "sinc":
        inverse = np.linalg.inv(rotation @ np.diag([p.sigma_x**2, p.sigma_y**2]) @ rotation.T)
    for y in range(-half, half + 1):
        for x in range(-half, half + 1):
            if p.family == "sinc":
                r = math.hypot(x, y)
                value = p.cutoff**2 / (4 * math.pi) if r == 0 else p.cutoff * j1(p.cutoff * r) / (2 * math.pi * r)
            else:
                q = float(np.array([x, y]) @ inverse @ np.array([x, y]))
                if "plateau" in p.family:
                    value = 1 / (1 + q**p.beta)
                else:
                    value = math.exp(-0.5 * (q**p.beta if "generalized" in p.family else q))
            kernel[10 + y, 10 + x] = value
    return torch.from_numpy(kernel / kernel.sum()).float()


def filter2d(image: Tensor, kernel: Tensor) -> Tensor:
    """Correlate (3, H, W) with a square kernel, the border reflected."""
    radius = kernel.shape[0] // 2
    padded = F.pad(image[None], [radius] * 4, mode="reflect")
    return F.conv2d(padded, kernel.expand(3, 1, *kernel.shape), groups=3)[0]


def sharpen(image: Tensor) -> Tensor:
    """USM with the Gaussian of 51 taps and OpenCV's sigma for that size."""
    sigma = 0.3 * ((51 - 1) * 0.5 - 1) + 0.8
    taps = torch.exp(-((torch.arange(51.0) - 25) ** 2) / (2 * sigma**2))
    kernel = torch.outer(taps, taps) / taps.sum() ** 2
    residual = image - filter2d(image, kernel)
    mask = filter2d((residual.abs() * 255 > 10).float(), kernel)
    return mask * (image + 0.5 * residual).clamp(0, 1) + (1 - mask) * image


def resize(image: Tensor, p: ResizeParameters) -> Tensor:
    """torch's resize to a size."""
    corners = {} if p.mode == "area" else {"align_corners": False}
    return F.interpolate(image[None], size=(p.height, p.width), mode=p.mode, **corners)[0]


def add_noise(image: Tensor, p: NoiseParameters) -> Tensor:
    """Gaussian or Poisson noise from torch's global generator, clipped."""
    if p.kind == "gaussian":
        noise = p.strength * (torch.randn(1, *image.shape[1:]) if p.gray else torch.randn(image.shape))
    else:
        source = 0.299 * image[:1] + 0.587 * image[1:2] + 0.114 * image[2:] if p.gray else image
        source = (source.clamp(0, 1) * 255).round() / 255
        vals = 2 ** math.ceil(math.log2(len(torch.unique(source))))
        noise = p.strength * (torch.poisson(source * vals) / vals - source)
    return (image + noise).clamp(0, 1)


def real_jpeg(image: Tensor, quality: int) -> Tensor:
    """Pillow's codec with 4:2:0 chroma."""
    levels = (image.clamp(0, 1) * 255).round().byte().permute(1, 2, 0).numpy()
    buffer = io.BytesIO()
    Image.fromarray(levels).save(buffer, "JPEG", quality=quality, subsampling=2)
    return torch.from_numpy(np.array(Image.open(buffer)).copy()).permute(2, 0, 1).float() / 255


LUMA = torch.tensor(
    [
        [16, 11, 10, 16, 24, 40, 51, 61],
        [12, 12, 14, 19, 26, 58, 60, 55],
        [14, 13, 16, 24, 40, 57, 69, 56],
        [14, 17, 22, 29, 51, 87, 80, 62],
        [18, 22, 37, 56, 68, 109, 103, 77],
        [24, 35, 55, 64, 81, 104, 113, 92],
        [49, 64, 78, 87, 103, 121, 120, 101],
        [72, 92, 95, 98, 112, 100, 103, 99],
    ]
).float()
CHROMA = torch.full((8, 8), 99.0)
CHROMA[:4, :4] = torch.tensor([[17, 18, 24, 47], [18, 21, 26, 66], [24, 26, 56, 99], [47, 66, 99, 99]])


def torch_jpeg(image: Tensor, quality: int) -> Tensor:
    """A JPEG round trip in plain torch, with the four-dimensional cosine tensor that such codecs use."""
    height, width = image.shape[1:]
    x = F.pad((image.clamp(0, 1) * 255)[None], (0, -width % 16, 0, -height % 16), mode="replicate")[0]
    matrix = torch.tensor([[0.299, 0.587, 0.114], [-0.168736, -0.331264, 0.5], [0.5, -0.418688, -0.081312]])
    ycc = torch.tensordot(x.permute(1, 2, 0), matrix, dims=([2], [1])) + torch.tensor([0.0, 128, 128])
    planes = [ycc[..., 0], *(F.avg_pool2d(ycc[..., c][None], 2)[0] for c in (1, 2))]
    k = torch.arange(8.0)
    cosine = torch.cos((2 * k[:, None] + 1) * k[None] * math.pi / 16)  # (sample, frequency)
    basis = torch.einsum("yu,xv->yxuv", cosine, cosine)
    alpha = torch.tensor([1 / math.sqrt(2)] + [1.0] * 7)
    scale = torch.outer(alpha, alpha) / 4
    factor = (5000 / quality if quality < 50 else 200 - 2 * quality) / 100
    decoded = []
    for plane, base in zip(planes, (LUMA, CHROMA, CHROMA), strict=True):
        h, w = plane.shape
        table = (base * factor).round().clamp(1, 255)
        blocks = plane.reshape(h // 8, 8, w // 8, 8).permute(0, 2, 1, 3).reshape(-1, 8, 8) - 128
        coefficients = scale * torch.tensordot(blocks, basis, dims=2)
        coefficients = (coefficients / table).round() * table
        blocks = torch.tensordot(coefficients * scale, basis.permute(2, 3, 0, 1), dims=2) + 128
        decoded.append(blocks.reshape(h // 8, w // 8, 8, 8).permute(0, 2, 1, 3).reshape(h, w))
    luma, *chroma = decoded
    chroma = [c.repeat_interleave(2, 0).repeat_interleave(2, 1) - 128 for c in chroma]
    back = torch.tensor([[1, 0, 1.402], [1, -0.344136, -0.714136], [1, 1.772, 0]])
    rgb = torch.tensordot(torch.stack([luma, *chroma], -1), back, dims=([2], [1])).permute(2, 0, 1)
    return rgb[:, :height, :width].clamp(0, 255) / 255


def apply(hq: np.ndarray, p: DegradationParameters, jpeg=real_jpeg) -> tuple[np.ndarray, np.ndarray]:
    """Degrade (H, W, 3) uint8 with given parameters; noise comes from torch's global generator."""
    x = torch.from_numpy(hq).permute(2, 0, 1).float() / 255
    if p.usm_sharpen:
        x = sharpen(x)
    target = x
    x = filter2d(x, kernel_21(p.blur1))
    x = resize(x, p.resize1)
    x = add_noise(x, p.noise1)
    x = jpeg(x, p.jpeg1)
    if p.blur2 is not None:
        x = filter2d(x, kernel_21(p.blur2))
    x = resize(x, p.resize2)
    x = add_noise(x, p.noise2)
    if not p.jpeg_last:
        x = jpeg(x, p.jpeg2)
    x = resize(x, p.resize3)
    if p.sinc is not None:
        x = filter2d(x, kernel_21(p.sinc))
    if p.jpeg_last:
        x = jpeg(x, p.jpeg2)
    return tuple((i.clamp(0, 1) * 255).round().byte().permute(1, 2, 0).numpy() for i in (target, x))


def degrade(hq: np.ndarray, preset: DegradationPreset, seed: int, jpeg=real_jpeg) -> tuple[np.ndarray, np.ndarray]:
    """Degrade (H, W, 3) uint8 with its own draws."""
    torch.manual_seed(seed)
    return apply(hq, draw(preset, random.Random(seed), *hq.shape[:2]), jpeg)

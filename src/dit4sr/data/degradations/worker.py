"""The degradation of one image with NumPy, OpenCV and a real JPEG codec: the engine of the data workers.

Images between the stages are RGB float32 arrays (H, W, 3) in [0, 1]. The equations are those of Real-ESRGAN's
second-order pipeline (arXiv 2107.10833, section 3), with every parameter drawn per image.
"""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from dit4sr.data.degradations.filtering import filter_image
from dit4sr.data.degradations.kernels import Kernel, make_kernel
from dit4sr.data.degradations.parameters import (
    DegradationParameters,
    KernelParameters,
    NoiseParameters,
    ResizeParameters,
    check_size,
    draw_parameters,
    worker_noise,
)
from dit4sr.data.degradations.pipeline import StageParameters, stages
from dit4sr.data.degradations.poisson import poisson_noise
from dit4sr.data.degradations.presets import DegradationPreset
from dit4sr.errors import UserError

Image = NDArray[np.float32]
Image8 = NDArray[np.uint8]

USM_SIZE = 51  # taps of the Gaussian of "radius 50"
USM_WEIGHT = 0.5
USM_THRESHOLD = 10 / 255
_ALL_255 = (255.0, 255.0, 255.0, 255.0)
LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601


def degrade(hq: Image8, preset: str | DegradationPreset, seed: int) -> tuple[Image8, Image8]:
    """Synthesise the low-quality image of a photo.

    Args:
        hq: (H, W, 3) uint8 RGB, H and W positive multiples of 4.
        preset: a name of `configs/degradation`, or a preset.
        seed: non-negative integer; the same seed gives the same pair.

    Returns:
        hq: (H, W, 3) uint8, the training target: the sharpened input where the preset sharpens, else a copy.
        lq: (H/4, W/4, 3) uint8, made from that target.

    Raises:
        UserError: the image has another type or size, or the preset does not exist.
    """
    if not isinstance(hq, np.ndarray) or hq.dtype != np.uint8 or hq.ndim != 3 or hq.shape[2] != 3:
        found = f"{hq.dtype} {hq.shape}" if isinstance(hq, np.ndarray) else type(hq).__name__
        raise UserError(f"an image to degrade must be a uint8 RGB array (H, W, 3), not {found}: convert it.")
    check_size(*hq.shape[:2])
    parameters = draw_parameters(preset, seed, *hq.shape[:2])
    return apply_parameters(hq, parameters, worker_noise(seed))


def apply_parameters(hq: Image8, p: DegradationParameters, rng: np.random.Generator) -> tuple[Image8, Image8]:
    """Run the pipeline on (H, W, 3) uint8 with given parameters; `rng` gives the values of the noise."""
    image = hq.astype(np.float32)
    image *= np.float32(1 / 255)
    if p.usm_sharpen:
        image = sharpen(image)
        target = to_uint8(image)
    else:
        target = hq.copy()

    for stage in stages(p):
        image = apply_stage(image, stage.parameters, rng)
    return target, to_uint8(image)


def apply_stage(image: Image, parameters: StageParameters, rng: np.random.Generator) -> Image:
    """Do one stage to an image in [0, 1]: filter, resize, noise or JPEG, as the type of the parameters says."""
    if isinstance(parameters, KernelParameters):
        return blur(image, parameters)
    if isinstance(parameters, ResizeParameters):
        return resize(image, parameters)
    if isinstance(parameters, NoiseParameters):
        return add_noise(image, parameters, rng)
    return jpeg(image, parameters)


def to_uint8(image: Image) -> Image8:
    """Clip to [0, 1] and round to 8 bits."""
    # OpenCV rounds half to even and saturates, as NumPy's rint and clip would in three passes.
    levels = cv2.multiply(image, _ALL_255, dtype=cv2.CV_8U)  # type: ignore[call-overload]
    return np.asarray(levels, np.uint8).reshape(image.shape)


def sharpen(image: Image) -> Image:
    """Unsharp masking of an image in [0, 1].

    residual = image - blur(image); where |residual| * 255 > 10, softened by the same blur, the image gives
    way to clip(image + 0.5 * residual). The blur is OpenCV's Gaussian of 51 taps (sigma 8), per channel.
    """
    taps = np.asarray(cv2.getGaussianKernel(USM_SIZE, 0, cv2.CV_32F), np.float32)
    residual = image - _separable(image, taps)
    mask = _separable((np.abs(residual) > USM_THRESHOLD).view(np.uint8), taps)
    residual *= USM_WEIGHT
    sharp = np.clip(image + residual, np.float32(0), np.float32(1))
    sharp -= image
    sharp *= mask
    sharp += image
    return sharp


def _separable(image: Image | Image8, taps: Kernel) -> Image:
    filtered = cv2.sepFilter2D(image, cv2.CV_32F, taps, taps, borderType=cv2.BORDER_REFLECT_101)
    return np.asarray(filtered, np.float32)


def blur(image: Image, parameters: KernelParameters) -> Image:
    """Filter with the kernel of the parameters; the border is a reflection without the edge pixel.

    Where the image is smaller than the kernel's radius the reflection goes on to and fro.
    """
    return filter_image(image, make_kernel(parameters))


def resize(image: Image, parameters: ResizeParameters) -> Image:
    """Resize as torch's `interpolate(size=...)`: half-pixel centres, no antialiasing, bicubic with a = -3/4.

    "area" averages the bins [floor(i * in / out), ceil((i + 1) * in / out)). The sampling step is the ratio
    of the sizes, also where a drawn scale gave a fractional size, so that LQ and HQ stay registered.
    """
    height, width = parameters.height, parameters.width
    if (height, width) == image.shape[:2]:
        return image
    if parameters.mode == "area":
        return _resize_area(image, height, width)
    flag = cv2.INTER_LINEAR if parameters.mode == "bilinear" else cv2.INTER_CUBIC
    return np.asarray(cv2.resize(image, (width, height), interpolation=flag), np.float32)


def _resize_area(image: Image, height: int, width: int) -> Image:
    top, bottom = area_bins(image.shape[0], height)
    left, right = area_bins(image.shape[1], width)
    sums = cv2.integral(image, sdepth=cv2.CV_64F)  # sums[y, x] is the sum over rows < y and columns < x
    bands = (sums[bottom] - sums[top]).reshape(height, -1)
    channel = np.arange(3)
    sums = bands.take((3 * right[:, None] + channel).ravel(), axis=1)
    sums -= bands.take((3 * left[:, None] + channel).ravel(), axis=1)
    sums /= np.outer(bottom - top, (right - left).repeat(3))
    return sums.reshape(height, width, 3).astype(np.float32)


def area_bins(source: int, target: int) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Starts and ends of the `target` bins over `source` pixels that torch's area mode averages."""
    i = np.arange(target)
    return i * source // target, -(-(i + 1) * source // target)


def add_noise(image: Image, parameters: NoiseParameters, rng: np.random.Generator) -> Image:
    """Add noise and clip to [0, 1], without rounding.

    Gaussian: sigma * N(0, 1), one value a pixel for gray noise, one a channel otherwise. Poisson: with the
    image (for gray noise its luma) rounded to 8 bits and v = 2^ceil(log2(number of its levels)),
    strength * (Poisson(image * v) / v - image).
    """
    height, width = image.shape[:2]
    if parameters.kind == "gaussian":
        noise = rng.standard_normal((height, width, 1 if parameters.gray else 3), dtype=np.float32)
        noise *= np.float32(parameters.strength)
    else:
        source = image @ np.array(LUMA, np.float32)[:, None] if parameters.gray else image
        levels = to_uint8(source)
        noise = poisson_noise(levels, poisson_levels(levels), rng)
        noise *= np.float32(parameters.strength)
    noisy = image + noise
    return np.clip(noisy, 0, 1, out=noisy)


def poisson_levels(levels: Image8) -> int:
    """Return 2^ceil(log2(number of distinct values)), 1 to 256."""
    distinct = int(np.count_nonzero(np.bincount(levels.ravel(), minlength=256)))
    return 1 << (distinct - 1).bit_length()


def jpeg(image: Image, quality: int) -> Image:
    """Code and decode an image in [0, 1] as a JPEG of the given quality (1 to 100)."""
    decoded = jpeg_uint8(to_uint8(image), quality).astype(np.float32)
    decoded *= np.float32(1 / 255)
    return decoded


def jpeg_uint8(image: Image8, quality: int) -> Image8:
    """Code and decode (H, W, 3) uint8 RGB with 4:2:0 chroma."""
    options = [
        cv2.IMWRITE_JPEG_QUALITY,
        quality,
        cv2.IMWRITE_JPEG_SAMPLING_FACTOR,
        cv2.IMWRITE_JPEG_SAMPLING_FACTOR_420,
    ]
    done, code = cv2.imencode(".jpg", cv2.cvtColor(image, cv2.COLOR_RGB2BGR), options)
    decoded = cv2.imdecode(code, cv2.IMREAD_COLOR)
    assert done and decoded is not None, "OpenCV could not code a JPEG"
    return np.asarray(cv2.cvtColor(decoded, cv2.COLOR_BGR2RGB), np.uint8)

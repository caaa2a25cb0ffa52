"""Images of the kinds that diffusers' pipelines take and give."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from dit4sr.errors import UserError
from dit4sr.restoration.decoding import Strips, whole_arrays, whole_tensors
from dit4sr.restoration.restoring import Plan

ImageInput = Any
"""A PIL image; an array (h, w, 3) or (B, h, w, 3), or grey (h, w), uint8 or floating point in [0, 1]; a tensor
(3, h, w) or (B, 3, h, w), uint8 or floating point in [0, 1]; or a list of these, of any sizes."""

OUTPUT_TYPES = ("pil", "np", "pt", "latent")


def to_tensors(images: ImageInput) -> list[Tensor]:
    """Any :data:`ImageInput` → a list of (3, h, w), uint8, or float32 in [0, 1].

    Raises:
        UserError: for anything else, or no image at all.
    """
    tensors = [tensor for image in (images if isinstance(images, list | tuple) else [images]) for tensor in _one(image)]
    if not tensors:
        raise UserError("no image to restore: give at least one")
    return tensors


def _one(image: Any) -> Iterable[Tensor]:
    if isinstance(image, Image.Image):
        if image.mode.startswith(("I", "F")):
            raise UserError(f"image mode {image.mode}: convert it to 8-bit RGB first")
        rgb = np.array(ImageOps.exif_transpose(image).convert("RGB"))
        return [_checked(torch.from_numpy(rgb).permute(2, 0, 1))]
    if isinstance(image, np.ndarray):
        array = np.repeat(image[..., None], 3, axis=-1) if image.ndim == 2 else image
        if array.dtype != np.uint8 and not np.issubdtype(array.dtype, np.floating):
            raise UserError(f"image array of {array.dtype}: give uint8, or floating point in [0, 1]")
        if array.ndim not in (3, 4) or array.shape[-1] != 3:
            raise UserError(f"image array of shape {image.shape}: give (h, w, 3) or (B, h, w, 3)")
        tensor = torch.from_numpy(np.ascontiguousarray(array)).movedim(-1, -3)
    elif isinstance(image, Tensor):
        tensor = image
        if tensor.ndim not in (3, 4) or tensor.shape[-3] != 3:
            raise UserError(f"image tensor of shape {tuple(tensor.shape)}: give (3, h, w) or (B, 3, h, w)")
        if tensor.dtype != torch.uint8 and not tensor.is_floating_point():
            raise UserError(f"image tensor of {tensor.dtype}: give uint8, or floating point in [0, 1]")
    else:
        raise UserError(f"image of type {type(image).__name__}: give a PIL image, an array, a tensor or a list of them")
    return [_checked(part) for part in (tensor if tensor.ndim == 4 else tensor[None])]


def _checked(image: Tensor) -> Tensor:
    if not image.numel():
        raise UserError(f"image of shape {tuple(image.shape)}: it has no pixels")
    if image.dtype == torch.uint8:
        return image
    low, high = float(image.min()), float(image.max())
    if not (low >= -1e-4 and high <= 1 + 1e-4):  # also where they are not numbers
        raise UserError(f"image values from {low:.4g} to {high:.4g}: floating point images lie in [0, 1]")
    return image.float().clamp(0, 1)


def runs(images: list[Tensor], at_most: int) -> list[slice]:
    """Neighbours of one size and type that can be restored as one batch, in order."""
    slices, first = [], 0
    for n in range(1, len(images) + 1):
        if n < len(images) and n - first < at_most:
            a, b = images[first], images[n]
            if (a.shape, a.dtype) == (b.shape, b.dtype):
                continue
        slices.append(slice(first, n))
        first = n
    return slices


def images_of(strips: Strips, plan: Plan, output_type: str) -> list[Any]:
    """What was decoded as PIL images, arrays (H, W, 3) float32, or tensors (3, H, W)."""
    if output_type == "pt":
        return list(whole_tensors(strips, plan))
    arrays = whole_arrays(strips, plan, as_float=output_type == "np")
    return [Image.fromarray(array) for array in arrays] if output_type == "pil" else list(arrays)


def gather(images: list[Any], output_type: str) -> Any:
    """One array or tensor of all, where they are of one size, as diffusers gives them; else the list."""
    if output_type == "pil" or len({tuple(image.shape) for image in images}) > 1:
        return images
    return np.stack(images) if output_type == "np" else torch.stack(images)


def one_each(generator: torch.Generator | Sequence[torch.Generator] | None, count: int) -> list[torch.Generator] | None:
    """A generator for each of ``count`` results; a single one is drawn from in turn.

    Raises:
        UserError: for another number of them.
    """
    if generator is None or isinstance(generator, torch.Generator):
        return None if generator is None else [generator] * count
    if len(generator) != count:
        raise UserError(f"{len(generator)} generators for {count} results: give one, or one a result")
    return list(generator)

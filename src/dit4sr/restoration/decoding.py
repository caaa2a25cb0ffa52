"""From the sampled latent to the restored images: decoded, colours aligned, rounded, strip by strip.

On a GPU no more than a row of tiles is there of an image; the result is put together where it is wanted.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from dit4sr.autoencoder_tiling import decode_bands
from dit4sr.autoencoders import Autoencoder
from dit4sr.images import to_uint8
from dit4sr.restoration.colour import Bands, align
from dit4sr.restoration.restoring import Plan
from dit4sr.restoration.upsampling import Upsampled
from dit4sr.tiles import TileSettings

Strips = Iterator[tuple[slice, Tensor]]
"""Some images of a batch, and their next rows, from above to below: (images, 3, rows, W) float32 in [0, 1]."""


def decode_restored(
    plan: Plan, autoencoder: Autoencoder, latent: Tensor, tile: TileSettings, at_once: int, colour: str
) -> Strips:
    """The restored images, of the target's size; see :data:`Strips`.

    Args:
        plan: see :class:`Plan`.
        autoencoder: see :class:`dit4sr.autoencoders.Autoencoder`.
        latent: what was sampled.
        tile: side and overlap in latent pixels.
        at_once: images of one forward pass.
        colour: of :data:`dit4sr.restoration.colour.ALIGN`.
    """
    height, width = plan.upsampled.height, plan.upsampled.width
    for first in range(0, len(latent), at_once):
        some = slice(first, min(first + at_once, len(latent)))
        reference = Upsampled(plan.upsampled.lq[some], height, width)
        bands = bands_of(autoencoder, latent[some], height, width, tile)
        for strip in align(colour, bands, reference.rows, height):
            yield some, strip.clamp(0, 1)


def bands_of(autoencoder: Autoencoder, latent: Tensor, height: int, width: int, tile: TileSettings) -> Bands:
    """The decoded image, as often as it is asked for: a single row of tiles is kept, a larger image decoded anew."""
    if latent.shape[-2] > tile.size:
        return lambda: decode_bands(autoencoder, latent, height, width, tile)
    kept = list(decode_bands(autoencoder, latent, height, width, tile))
    return lambda: iter(kept)


def whole_arrays(strips: Strips, plan: Plan, *, as_float: bool) -> list[np.ndarray]:
    """The images as arrays (H, W, 3): uint8, or float32 in [0, 1] unrounded."""
    shape = plan.upsampled.height, plan.upsampled.width, 3
    arrays = [np.empty(shape, np.float32 if as_float else np.uint8) for _ in plan.upsampled.lq]
    done = [0] * len(arrays)
    for some, strip in strips:
        rows = (strip if as_float else to_uint8(strip)).permute(0, 2, 3, 1).cpu().numpy()
        for n, own in zip(range(some.start, some.stop), rows, strict=True):
            arrays[n][done[n] : done[n] + len(own)] = own
            done[n] += len(own)
    return arrays


def whole_tensors(strips: Strips, plan: Plan) -> list[Tensor]:
    """The images as tensors (3, H, W), float32 in [0, 1], where they were decoded."""
    parts: list[list[Tensor]] = [[] for _ in plan.upsampled.lq]
    for some, strip in strips:
        for n, own in zip(range(some.start, some.stop), strip, strict=True):
            parts[n].append(own)
    return [torch.cat(own, dim=-2) for own in parts]

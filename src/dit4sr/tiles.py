"""Overlapping tiles: where they lie, and by which weights they are blended.

A latent of any size is sampled, and an image of any size encoded and decoded, in tiles of one size, so that the
memory follows from the tile. Sides are covered axis by axis, so all weights are outer products of two lines.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from dit4sr.errors import UserError


@dataclass(frozen=True)
class TileSettings:
    """Latent tiles: a side and an overlap, in latent pixels."""

    size: int
    overlap: int


def check_tile(tile: TileSettings, patch: int = 1, largest: int | None = None) -> TileSettings:
    """Refuse tiles that a network cannot take, before anything is computed.

    Args:
        tile: asked for.
        patch: latent pixels of a token's side.
        largest: latent pixels that the network's positional table reaches; None where it has none.

    Raises:
        UserError: unless the side is a multiple of the patch, within the table, and larger than the overlap.
    """
    if tile.size < 1 or tile.size % patch:
        raise UserError(f"tile size {tile.size}: it must be a positive multiple of the patch, {patch} latent pixels")
    if largest is not None and tile.size > largest:
        raise UserError(f"tile size {tile.size}: the network's positional table ends at {largest} latent pixels")
    if not 0 <= tile.overlap < tile.size:
        raise UserError(f"tile overlap {tile.overlap}: it must lie between 0 and the tile size, {tile.size}, less one")
    return tile


def tile_starts(length: int, tile: int, overlap: int) -> list[int]:
    """First positions of the tiles that cover ``length``, the last one flush with the end.

    Raises:
        ValueError: unless 0 ≤ overlap < tile.
    """
    if not 0 <= overlap < tile:
        raise ValueError(f"tile={tile}, overlap={overlap}: the overlap must be smaller than the tile")
    if length <= tile:
        return [0]
    return [*range(0, length - tile, tile - overlap), length - tile]


def gaussian_window(height: int, width: int, *, device: Any = None) -> Tensor:
    """Blending weights of a tile, (height, width), positive, highest in the centre.

    A Gaussian of variance 0.01 in units of the side, as in tiled diffusion (arXiv 2302.02412).
    """

    def axis(n: int) -> Tensor:
        x = (torch.arange(n, dtype=torch.float32, device=device) - (n - 1) / 2) / n
        return torch.exp(-x.square() / (2 * 0.01))

    return torch.outer(axis(height), axis(width))


def ramp_weights(length: int, tile: int, overlap: int) -> list[tuple[int, Tensor]]:
    """Tiles along one axis with weights that add up to one everywhere: flat, with a raised cosine over the overlap.

    Where only one tile lies its weight is exactly 1. An autoencoder's tiles are blended so: near its border a
    tile is padded by zeros, and there its weight goes to zero.

    Returns:
        For each tile its start and its weights, (min(tile, length),) float32.
    """
    starts, size = tile_starts(length, tile, overlap), min(tile, length)
    if len(starts) == 1:
        return [(0, torch.ones(size))]
    # From the border inwards; a tile without overlap is flat.
    i = torch.arange(size, dtype=torch.float64)
    inwards = torch.minimum(i, size - 1 - i) + 0.5
    window = 0.5 - 0.5 * torch.cos(math.pi * (inwards / max(overlap, 0.5)).clamp(max=1))
    total = torch.zeros(length, dtype=torch.float64)
    for start in starts:
        total[start : start + size] += window
    return [(start, (window / total[start : start + size]).float()) for start in starts]

"""A velocity network on latents larger than it can take: overlapping tiles, blended."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from dit4sr.tiles import gaussian_window, tile_starts

Network = Callable[..., Any]
"""``network(z_t, lr_latent, timestep, tokens, pooled, return_dict=False)`` → velocity (B, C, H, W)."""

Predict = Callable[[Tensor, Tensor | None, Tensor], Tensor]
"""(tiles of z, tiles of the LR latent, index of each tile's sample) → velocity of the tiles."""


@dataclass(frozen=True)
class TiledNetwork:
    """A network evaluated on overlapping latent tiles, blended by Gaussian weights at every step.

    Where the latent fits one tile this is the network itself.

    Args:
        network: see :data:`Network`.
        tile: side of a tile in latent pixels, a multiple of the patch.
        overlap: of neighbouring tiles, in latent pixels.
        batch: at most so many tiles in one forward pass, which bounds the memory; with guidance each counts
            twice (but one tile is always taken).
    """

    network: Network
    tile: int
    overlap: int
    batch: int = 16

    def is_one_call(self, latent: Tensor, forwards: int = 1) -> bool:
        """Whether a latent (B, C, H, W) is one call of the network, uncut; ``forwards`` as in :meth:`blend`."""
        return max(latent.shape[-2:]) <= self.tile and len(latent) <= max(1, self.batch // forwards)

    def __call__(
        self,
        z: Tensor,
        lr_latent: Tensor | None,
        timestep: Tensor,
        tokens: Tensor,
        pooled: Tensor,
        return_dict: bool = False,
    ) -> Tensor:
        """Velocity of the whole latent, (B, C, H, W); arguments as for the network."""

        def predict(z: Tensor, lr_latent: Tensor | None, index: Tensor) -> Tensor:
            return self.network(z, lr_latent, timestep[index], tokens[index], pooled[index], return_dict=False)

        return self.blend(predict, z, lr_latent)

    def blend(self, predict: Predict, z: Tensor, lr_latent: Tensor | None, *, forwards: int = 1) -> Tensor:
        """Run ``predict`` on all tiles and blend what it gives.

        Args:
            predict: see :data:`Predict`.
            z, lr_latent: (B, C, H, W).
            forwards: how many network inputs ``predict`` makes of a tile.

        Returns:
            (B, C, H, W).
        """
        B, _, H, W = z.shape
        rows, columns = tile_starts(H, self.tile, self.overlap), tile_starts(W, self.tile, self.overlap)
        at_once = max(1, self.batch // forwards)
        samples = torch.arange(B, device=z.device)
        if len(rows) == len(columns) == 1:
            parts = [
                predict(z[i], None if lr_latent is None else lr_latent[i], samples[i])
                for i in (slice(first, first + at_once) for first in range(0, B, at_once))
            ]
            return parts[0] if len(parts) == 1 else torch.cat(parts)
        h, w = min(H, self.tile), min(W, self.tile)
        window = gaussian_window(h, w, device=z.device)
        places = [(b, y, x) for y in rows for x in columns for b in range(B)]
        of_tile = samples.repeat(len(rows) * len(columns))  # b of each place; a list of numbers would be waited for
        total = torch.zeros(z.shape, dtype=torch.float32, device=z.device)
        weight = torch.zeros((1, 1, H, W), device=z.device)
        for y in rows:
            for x in columns:
                weight[..., y : y + h, x : x + w] += window
        for first in range(0, len(places), at_once):
            chunk = places[first : first + at_once]

            def cut(latent: Tensor, chunk: list[tuple[int, int, int]] = chunk) -> Tensor:
                return torch.stack([latent[b, :, y : y + h, x : x + w] for b, y, x in chunk])

            own = of_tile[first : first + at_once]
            velocity = predict(cut(z), None if lr_latent is None else cut(lr_latent), own)
            for (b, y, x), v in zip(chunk, velocity, strict=True):
                total[b, :, y : y + h, x : x + w] += window * v
        return total.div_(weight).to(z.dtype)

"""How a pipeline encodes and decodes: in tiles, image by image or many at once, as diffusers' pipelines have it."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from dit4sr.tiles import TileSettings, check_tile


class VaeTiling:
    """The part of a pipeline that says how large a piece its autoencoder takes at once."""

    config: Any
    _vae_tile: TileSettings | None
    _vae_at_once: int | None = None

    def enable_vae_tiling(self, size: int | None = None, overlap: int | None = None) -> None:
        """Encode and decode in tiles; that is how a pipeline starts, with the tiles of the network.

        Args:
            size, overlap: in latent pixels; None for the network's.

        Raises:
            UserError: unless 0 ≤ overlap < size.
        """
        own = self._tile(size, overlap)
        self._vae_tile = check_tile(own)

    def disable_vae_tiling(self) -> None:
        """Encode and decode images of any size in one piece: memory then grows with the image."""
        self._vae_tile = None

    def enable_vae_slicing(self) -> None:
        """Encode and decode the images of a batch one after the other."""
        self._vae_at_once = 1

    def disable_vae_slicing(self) -> None:
        """Encode and decode as many images at once as tiles are sampled at once; that is how a pipeline starts."""
        self._vae_at_once = None

    def _tile(self, size: int | None, overlap: int | None) -> TileSettings:
        """The tile asked for; an overlap that is not said keeps its share of the side."""
        own = TileSettings(**self.config.tile)
        if size is not None and overlap is None:
            overlap = own.overlap * size // own.size
        return TileSettings(own.size if size is None else size, own.overlap if overlap is None else overlap)

    def _vae_tiles(self, latent: Tensor) -> TileSettings:
        return self._vae_tile or TileSettings(max(latent.shape[-2:]), 0)

"""Encoding and decoding images of any size in overlapping tiles, so that the memory follows from the tile.

A convolutional autoencoder pads every tile's border by zeros and normalises over the tile (group norm, and the
attention in its middle), so tiles differ where they meet: they overlap, are all of one size (the last one lies
flush with the end, so none is a sliver), and are blended by a raised cosine over the overlap. An image is decoded from
above to below, and its rows are given away as soon as no further tile adds to them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from dit4sr.autoencoders import Autoencoder
from dit4sr.tiles import TileSettings, ramp_weights


def encode_tiled(
    autoencoder: Autoencoder,
    part: Callable[[slice, slice], Tensor],
    height: int,
    width: int,
    tile: TileSettings,
    noise: Tensor | None = None,
) -> Tensor:
    """Encode an image that is asked for part by part; one that fits a tile is encoded as it is.

    Args:
        autoencoder: see :class:`dit4sr.autoencoders.Autoencoder`.
        part: rows and columns → that part of the image, (B, 3, rows, columns) in [0, 1].
        height, width: of the image, multiples of the autoencoder's scale.
        tile: side and overlap, in latent pixels.
        noise: to sample the posterior, in the latent's shape; None takes its mode.

    Returns:
        The normalised latent, (B, C, height/scale, width/scale) float32.
    """
    scale = autoencoder.scale
    rows = ramp_weights(height // scale, tile.size, tile.overlap)
    columns = ramp_weights(width // scale, tile.size, tile.overlap)
    latent: Tensor | None = None
    for y, down in rows:
        for x, right in columns:
            inside = slice(y, y + len(down)), slice(x, x + len(right))
            image = part(*(slice(s.start * scale, s.stop * scale) for s in inside))
            piece = autoencoder.encode(image, None if noise is None else noise[..., *inside]).float()
            if len(rows) == len(columns) == 1:
                return piece
            if latent is None:
                latent = piece.new_zeros(*piece.shape[:2], height // scale, width // scale)
            latent[..., *inside] += piece * torch.outer(down, right).to(piece)
    assert latent is not None
    return latent


def decode_bands(
    autoencoder: Autoencoder, latent: Tensor, height: int, width: int, tile: TileSettings
) -> Iterator[Tensor]:
    """Decode a latent to the image's first ``height`` rows and ``width`` columns; the rest was padding.

    Args:
        autoencoder: see :class:`dit4sr.autoencoders.Autoencoder`.
        latent: normalised, (B, C, h, w).
        height, width: of the image, at most h and w times the autoencoder's scale.
        tile: side and overlap, in latent pixels.

    Yields:
        The image's rows, from above to below, whenever some are done: (B, 3, rows, width) float32 in [0, 1].
    """
    scale = autoencoder.scale
    rows = ramp_weights(latent.shape[-2], tile.size, tile.overlap)
    columns = ramp_weights(latent.shape[-1], tile.size, tile.overlap)

    def decoded(y: int, x: int, down: Tensor, right: Tensor) -> Tensor:
        piece = autoencoder.decode(latent[..., y : y + len(down), x : x + len(right)]).float()
        return piece[..., : height - y * scale, : width - x * scale]

    if len(rows) == len(columns) == 1:
        yield decoded(0, 0, rows[0][1], columns[0][1])
        return
    begun = latent.new_zeros(len(latent), 3, 0, width, dtype=torch.float32)  # rows that the next tiles add to
    for i, (y, down) in enumerate(rows):
        if y * scale >= height:  # these tiles lie in the padding alone
            break
        last = min((y + len(down)) * scale, height)
        band = begun.new_zeros(*begun.shape[:2], last - y * scale, width)
        band[..., : begun.shape[-2], :] = begun
        for x, right in columns:
            if x * scale >= width:
                continue
            piece = decoded(y, x, down, right)
            weight = torch.outer(down.repeat_interleave(scale), right.repeat_interleave(scale))
            h, w = piece.shape[-2:]
            band[..., :h, x * scale : x * scale + w] += piece * weight[:h, :w].to(piece)
        done = min(rows[i + 1][0] * scale, height) - y * scale if i + 1 < len(rows) else band.shape[-2]
        begun = band[..., done:, :].clone()
        yield band[..., :done, :]

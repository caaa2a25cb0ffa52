"""The JPEG codecs that the batched engine may use, by name; docs/degradations.md compares them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib.util import find_spec

import torch
from torch import Tensor

from dit4sr.data.degradations.batched_jpeg import jpeg_batch
from dit4sr.data.degradations.batched_resize import repeated, take
from dit4sr.data.degradations.rounding import to_levels
from dit4sr.errors import UserError

Codec = Callable[[Tensor, Tensor, Tensor, Sequence[int]], Tensor]
"""(images, their heights and widths, their qualities) → images; see `jpeg_batch`."""


def kornia_jpeg_batch(image: Tensor, heights: Tensor, widths: Tensor, qualities: Sequence[int]) -> Tensor:
    """Return the images after kornia's differentiable JPEG round trip (arXiv 2309.06978).

    Its rounding keeps the cube of what is rounded off, so its gradients are those of the result, and the artefacts
    are weaker than a real codec's.

    Args:
        image, heights, widths, qualities: as for `jpeg_batch`.
    """
    from kornia.enhance import jpeg_codec_differentiable

    height, width = image.shape[2:]
    # Blocks are coded apart, so what an image's border pixels are repeated into does not reach back into it.
    whole = take(to_levels(image), repeated(height, heights), repeated(width, widths))
    # On the host, where kornia looks at the range without waiting for the device.
    coded = jpeg_codec_differentiable(whole, torch.tensor(list(qualities), dtype=torch.float32))
    return to_levels(coded)  # its clipping is soft too


CODECS: dict[str, Codec] = {"libjpeg": jpeg_batch, "kornia": kornia_jpeg_batch}


def find_codec(name: str) -> Codec:
    """Return a codec.

    Raises:
        UserError: there is none of the name, or its package is not installed.
    """
    if name not in CODECS:
        raise UserError(f"data.jpeg={name}: choose one of {', '.join(CODECS)}.")
    if name == "kornia" and find_spec("kornia") is None:
        raise UserError("data.jpeg=kornia needs kornia: pip install 'dit4sr[kornia]', or leave it at libjpeg.")
    return CODECS[name]

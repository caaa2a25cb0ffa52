"""A baseline JPEG round trip (ITU-T T.81) of a batch on any device, with a quality for each image.

Only the lossy steps are done: JFIF colour, 4:2:0 chroma, 8x8 DCT, quantisation, and back. Roundings, chroma
averaging and triangle upsampling follow libjpeg, so that the result is that of a real codec to about a level.
Gradients pass the roundings straight through.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

from dit4sr.data.degradations.batched_resize import repeated, take
from dit4sr.data.degradations.rounding import rounded
from dit4sr.data.transfer import to_device

# ITU-T T.81, tables K.1 and K.2, row by row.
LUMA_TABLE = (
    (16, 11, 10, 16, 24, 40, 51, 61),
    (12, 12, 14, 19, 26, 58, 60, 55),
    (14, 13, 16, 24, 40, 57, 69, 56),
    (14, 17, 22, 29, 51, 87, 80, 62),
    (18, 22, 37, 56, 68, 109, 103, 77),
    (24, 35, 55, 64, 81, 104, 113, 92),
    (49, 64, 78, 87, 103, 121, 120, 101),
    (72, 92, 95, 98, 112, 100, 103, 99),
)
CHROMA_TABLE = (
    (17, 18, 24, 47, 99, 99, 99, 99),
    (18, 21, 26, 66, 99, 99, 99, 99),
    (24, 26, 56, 99, 99, 99, 99, 99),
    (47, 66, 99, 99, 99, 99, 99, 99),
    (99, 99, 99, 99, 99, 99, 99, 99),
    (99, 99, 99, 99, 99, 99, 99, 99),
    (99, 99, 99, 99, 99, 99, 99, 99),
    (99, 99, 99, 99, 99, 99, 99, 99),
)
# RGB to YCbCr of JFIF 1.02, in levels, before the offset of 128 on the chroma.
_TO_YCC = ((0.299, 0.587, 0.114), (-0.168735892, -0.331264108, 0.5), (0.5, -0.418687589, -0.081312411))
_TO_RGB = ((1.0, 0.0, 1.402), (1.0, -0.344136286, -0.714136286), (1.0, 1.772, 0.0))


def quantisation_tables(qualities: Sequence[int], base: Sequence[Sequence[int]]) -> Tensor:
    """Return (B, 8, 8) tables: `base` scaled for qualities 1..100 as libjpeg scales it, entries 1..255."""
    table = torch.tensor(base)[None]
    factor = torch.tensor([5000 // q if q < 50 else 200 - 2 * q for q in qualities])[:, None, None]
    return ((table * factor + 50) // 100).clamp(1, 255).float()


@lru_cache(maxsize=8)
def _dct_matrix(device: torch.device) -> Tensor:
    """The orthonormal DCT-II of 8 samples: (frequency, sample)."""
    k = torch.arange(8, dtype=torch.float64)[:, None]
    x = torch.arange(8, dtype=torch.float64)[None, :]
    matrix = torch.cos((2 * x + 1) * k * math.pi / 16) / 2
    matrix[0] /= math.sqrt(2)
    return to_device(matrix.float(), device)


def _requantise(plane: Tensor, table: Tensor) -> Tensor:
    """Send planes (B, C, H, W) in levels, sides multiples of 8, through DCT blocks quantised by (B, 8, 8)."""
    b, c, h, w = plane.shape
    dct = _dct_matrix(plane.device)
    table = table[:, None, None, :, None, :]
    blocks = (plane - 128).reshape(b, c, h // 8, 8, w // 8, 8)
    coefficients = torch.einsum("ky,bchywx,lx->bchkwl", dct, blocks, dct)
    coefficients = rounded(coefficients / table) * table
    blocks = torch.einsum("ky,bchkwl,lx->bchywx", dct, coefficients, dct)
    return rounded(blocks.reshape(b, c, h, w) + 128).clamp(0, 255)


def jpeg_batch(image: Tensor, heights: Tensor, widths: Tensor, qualities: Sequence[int]) -> Tensor:
    """Return the images after a JPEG round trip.

    Args:
        image: (B, 3, H, W) RGB float32 in [0, 1] (clipped and rounded to 8 bits here); image b fills the top
            left heights[b] x widths[b] pixels, the rest is ignored and comes back without meaning.
        qualities: B integers, 1 to 100.
    """
    device = image.device
    height, width = image.shape[2:]
    padded_height, padded_width = -(-height // 16) * 16, -(-width // 16) * 16
    levels = rounded(image.clamp(0, 1) * 255)
    levels = take(levels, repeated(padded_height, heights), repeated(padded_width, widths))

    ycc = torch.einsum("yc,bchw->byhw", to_device(torch.tensor(_TO_YCC), device), levels)
    ycc = rounded(ycc + to_device(torch.tensor([0.0, 128.0, 128.0]), device)[:, None, None])
    luma = _requantise(ycc[:, :1], to_device(quantisation_tables(qualities, LUMA_TABLE), device))

    # libjpeg rounds the mean of four half down and half up in turn, so as not to drift: floor((sum + 1 or 2) / 4).
    # Of sums that are whole numbers that is the nearest number to (sum - 1/2 or + 1/2) / 4, and never a half.
    bias = torch.arange(padded_width // 2, device=device) % 2 - 0.5
    chroma = rounded((F.avg_pool2d(ycc[:, 1:], 2) * 4 + bias) / 4)
    rows = repeated(padded_height // 2, (heights + 1) // 2)
    # It pads to the right before the averaging, as above, but to the bottom after it.
    chroma = take(chroma, rows, repeated(padded_width // 2, torch.full_like(widths, padded_width // 2)))
    chroma = _requantise(chroma, to_device(quantisation_tables(qualities, CHROMA_TABLE), device))
    columns = repeated(padded_width // 2, (widths + 1) // 2)
    chroma = take(chroma, rows, columns)
    # Weights of 3/4 and 1/4 in each direction: libjpeg's "fancy" upsampling.
    chroma = rounded(F.interpolate(chroma, scale_factor=2, mode="bilinear", align_corners=False))

    decoded = torch.cat([luma, chroma - 128], dim=1)
    rgb = torch.einsum("cy,byhw->bchw", to_device(torch.tensor(_TO_RGB), device), decoded)
    return rounded(rgb).clamp(0, 255)[:, :, :height, :width] / 255

"""The LR Injection's depth-wise convolution as a GPU kernel (Triton): h_X ← h_X + s·(DWConv3×3(h_L) + b), in place.

It moves what must be moved: h_L is read once (and its halo), h_X once, and h_X written, 6·B·K·D values of two bytes
each in half precision. A pointwise kernel of nine shifted reads fetches each of h_L's values nine times, from blocks of
threads that do not share a cache; and a convolution of cuDNN's leaves the sum to another kernel. Only GPUs need this
module: it imports Triton.

Legend: B batch, height × width = K tokens, C = 4D channels.
"""

from __future__ import annotations

from typing import Any

import triton
import triton.language as tl
from torch import Tensor
from torch.library import triton_op, wrap_triton

ROWS, COLUMNS, CHANNELS = 8, 8, 64
"""What one program computes: so many rows and columns of the grid, of so many channels."""


@triton.jit
def inject_kernel(  # type: ignore[no-untyped-def]  # Triton reads annotations
    h, weight, bias, scale, images, height, width, channels,
    rows: tl.constexpr, columns: tl.constexpr, lanes: tl.constexpr,
):  # fmt: skip
    """Rows of h_L are read from above to below, and each is added to the three rows of results that it is part of."""
    c = tl.program_id(0) * lanes + tl.arange(0, lanes)
    x = tl.program_id(1) * columns + tl.arange(0, columns)
    bands = tl.cdiv(height, rows)
    image = tl.program_id(2) // bands
    top = (tl.program_id(2) % bands) * rows

    known = c < channels
    tokens = height * width
    of_x = h + tl.cast(image, tl.int64) * tokens * channels
    of_l = of_x + tl.cast(images, tl.int64) * tokens * channels
    s = tl.load(scale).to(tl.float32)
    b = tl.load(bias + c, known, 0.0).to(tl.float32)[None, :]
    # A channel's nine weights, in registers: rows of results above, here, below, from left to right.
    w0 = tl.load(weight + 0 * channels + c, known, 0.0).to(tl.float32)[None, :]
    w1 = tl.load(weight + 1 * channels + c, known, 0.0).to(tl.float32)[None, :]
    w2 = tl.load(weight + 2 * channels + c, known, 0.0).to(tl.float32)[None, :]
    w3 = tl.load(weight + 3 * channels + c, known, 0.0).to(tl.float32)[None, :]
    w4 = tl.load(weight + 4 * channels + c, known, 0.0).to(tl.float32)[None, :]
    w5 = tl.load(weight + 5 * channels + c, known, 0.0).to(tl.float32)[None, :]
    w6 = tl.load(weight + 6 * channels + c, known, 0.0).to(tl.float32)[None, :]
    w7 = tl.load(weight + 7 * channels + c, known, 0.0).to(tl.float32)[None, :]
    w8 = tl.load(weight + 8 * channels + c, known, 0.0).to(tl.float32)[None, :]

    # A row's result lacks what the row below it adds, then it is whole.
    above = tl.zeros([columns, lanes], tl.float32)
    here = tl.zeros([columns, lanes], tl.float32)
    for i in range(rows + 2):
        y = top - 1 + i
        row = tl.full([columns], 0, tl.int32) + y
        inside = (row >= 0) & (row < height)
        line = of_l + (row * width + x)[:, None] * channels + c[None, :]
        left = tl.load(line - channels, (inside & (x > 0) & (x <= width))[:, None] & known[None, :], 0.0).to(tl.float32)
        mid = tl.load(line, (inside & (x < width))[:, None] & known[None, :], 0.0).to(tl.float32)
        right = tl.load(line + channels, (inside & (x + 1 < width))[:, None] & known[None, :], 0.0).to(tl.float32)
        above += left * w6
        above += mid * w7
        above += right * w8
        here += left * w3
        here += mid * w4
        here += right * w5
        below = left * w0
        below += mid * w1
        below += right * w2
        done = row - 1
        mine = ((done >= top) & (done < top + rows) & (done < height) & (x < width))[:, None] & known[None, :]
        place = of_x + (done * width + x)[:, None] * channels + c[None, :]
        old = tl.load(place, mine, 0.0).to(tl.float32)
        tl.store(place, (old + s * (above + b)).to(h.dtype.element_ty), mine)
        above = here
        here = below


def launch(kernel: Any, h: Tensor, weight: Tensor, bias: Tensor, scale: Tensor, height: int, width: int) -> None:
    """Start the kernel: see :func:`inject_`."""
    images, channels = h.shape[1], h.shape[-1]
    grid = (triton.cdiv(channels, CHANNELS), triton.cdiv(width, COLUMNS), images * triton.cdiv(height, ROWS))
    sizes = {"rows": ROWS, "columns": COLUMNS, "lanes": CHANNELS}
    kernel[grid](h, weight, bias, scale, images, height, width, channels, **sizes)


@triton_op("dit4sr::inject_", mutates_args={"h"})
def inject_(h: Tensor, weight: Tensor, bias: Tensor, scale: Tensor, height: int, width: int) -> None:
    """h[0] ← h[0] + s·(DWConv3×3(h[1]) + b), summed in float32 and rounded once.

    Args:
        h: h_X and h_L, (2, B, height·width, C), contiguous, on a GPU; h_X is changed.
        weight: (3, 3, C).
        bias: (C,).
        scale: s, of one value.
        height, width: of the token grid.
    """
    launch(wrap_triton(inject_kernel), h, weight, bias, scale, height, width)

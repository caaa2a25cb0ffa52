"""The first map of an MLP and its GELU, x ↦ GELU(W_1 x + b_1), whose result is a block's widest tensor, 4D channels."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import gelu

IN_PRODUCT = (torch.bfloat16, torch.float16)
"""Types in which cuBLASLt has products that end in a GELU."""


def linear_gelu(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """GELU(W x + b) as one product, the GELU taken of its float32 sums: (…, in) → (…, out).

    By cuBLASLt on a GPU, where the GELU is the tanh approximation; a pass over the result, twice 2·B·K·4D values, is
    saved, and a compiler finds the result in memory, so that the nine reads of the LR Injection's convolution do not
    compute nine GELUs. (On the CPU torch's function has the exact GELU: :class:`Expansion` does not use it there.)

    Args:
        x: (…, in).
        weight: (out, in).
        bias: (out,).
    """
    return torch._addmm_activation(bias, x.flatten(0, -2), weight.mT, use_gelu=True).unflatten(0, x.shape[:-1])


class Expansion(nn.Module):
    """GELU(W_1 x + b_1), tanh approximation.

    Args:
        activation: diffusers' ``GELU``; its map is taken over.
        fused: on a GPU, in half precision, the product ends in the GELU; not for weights that will be quantised.
    """

    def __init__(self, activation: Any, *, fused: bool) -> None:
        super().__init__()
        self.proj = activation.proj
        self.fused = fused

    def forward(self, x: Tensor) -> Tensor:
        """(…, D) → (…, 4D)."""
        if self.fused and x.is_cuda and x.dtype in IN_PRODUCT:
            return linear_gelu(x, self.proj.weight, self.proj.bias)
        return gelu(self.proj(x), approximate="tanh")

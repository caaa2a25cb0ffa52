"""Linear maps put together ahead of time: one after the other into one, and side by side into one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn


def linear_of(weight: Tensor, bias: Tensor | None, like: Tensor) -> nn.Linear:
    """A frozen map x ↦ W x + b, in the type and on the device of ``like``, without initialising it first.

    Args:
        weight: (out, in).
        bias: (out,), or None.
        like: any tensor.
    """
    with torch.device("meta"):
        linear = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None)
    linear.weight = nn.Parameter(weight.to(like), requires_grad=False)
    if bias is not None:
        linear.bias = nn.Parameter(bias.to(like), requires_grad=False)
    return linear


@torch.no_grad()
def fold(first: Any, second: Any) -> nn.Linear:
    """x ↦ P (W x + b_W) + b_P as one map: W' = P W, b' = P b_W + b_P.

    Half the products of an LR token's projection go. Folded in float32 at least, whatever type the weights have,
    and rounded once to the type of ``first``.

    Args:
        first: W and b_W, an ``nn.Linear``.
        second: P and b_P, an ``nn.Linear``.
    """
    exact = torch.float64 if first.weight.dtype == torch.float64 else torch.float32
    weight, bias = second.weight.to(exact), second.bias.to(exact)
    folded = weight @ first.weight.to(exact)
    return linear_of(folded, torch.addmv(bias, weight, first.bias.to(exact)), first.weight)


@torch.no_grad()
def side_by_side(linears: Sequence[Any]) -> nn.Linear:
    """Maps of the same input as one whose output is theirs, one after the other on the channels: exact."""
    weight = torch.cat([linear.weight for linear in linears])
    return linear_of(weight, torch.cat([linear.bias for linear in linears]), linears[0].weight)


class Maps(nn.Module):
    """Linear maps of one input, as one product (``fused``) or as one each.

    Args:
        linears: ``nn.Linear`` of one input width and one output width.
        fused: one product for all.
    """

    def __init__(self, linears: Sequence[Any], *, fused: bool) -> None:
        super().__init__()
        self.count = len(linears)
        self.linears = nn.ModuleList([side_by_side(linears)] if fused and linears else linears)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """(…, in) → one (…, out) a map; views of one product where it is fused."""
        if len(self.linears) == self.count:
            return tuple(linear(x) for linear in self.linears)
        return self.linears[0](x).chunk(self.count, dim=-1)

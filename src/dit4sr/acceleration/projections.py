"""Queries, keys and values of the image streams, in the ways that their matrix products can be arranged.

Legend: S = 1 or 2 streams, B batch, K image tokens a stream, D width. Streams come first, (S, B, K, D), so that
each stream is one contiguous matrix.

Products of a block at two streams, in units of 2·B·K·D² operations (a multiply-add counts two):

====================================================== ======== =========
arrangement                                            products operations
====================================================== ======== =========
W on [X; L], then P_q, P_k, P_v on L (as trained)      6        9
folded: W on X, P W on L                               6 or 2   6
folded, both streams in one batched product            1        6
[W; P W] (6D rows) on [X; L], half of it thrown away   1        12
====================================================== ======== =========

So one *plain* product for X and L exists only unfolded, where it is what the network does anyway; folded, the two
matrices differ and what can share a launch is a batched product, one matrix a stream.
"""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import Tensor, nn

from dit4sr.acceleration.folding import Maps, fold

Parts = tuple[Tensor, ...]


class Projections(Protocol):
    """(S, B, K, D) → q, k, v of X, and what L needs of its own, each (B, K, D)."""

    def __call__(self, image: Tensor) -> tuple[Parts, Parts]: ...


class SharedProjections(nn.Module):
    """As trained: W on both streams, P on L. ``fused``: W_q, W_k and W_v in one product."""

    def __init__(self, attention: Any, needed: str, *, fused: bool) -> None:
        super().__init__()
        self.needed = tuple("qkv".index(letter) for letter in needed)
        self.base = Maps([attention.to_q, attention.to_k, attention.to_v], fused=fused)
        controls = [getattr(attention, f"to_{letter}_control") for letter in needed]
        self.control = nn.ModuleList(controls)

    def forward(self, image: Tensor) -> tuple[Parts, Parts]:
        parts = self.base(image)
        if image.shape[0] == 1:
            return tuple(part[0] for part in parts), ()
        of_lr = zip(self.needed, self.control, strict=True)
        return tuple(part[0] for part in parts), tuple(control(parts[i][1]) for i, control in of_lr)


class FoldedProjections(nn.Module):
    """W on X and P W on L. ``fused``: one product a stream."""

    def __init__(self, attention: Any, needed: str, *, fused: bool) -> None:
        super().__init__()
        base = [attention.to_q, attention.to_k, attention.to_v]
        folded = [fold(base["qkv".index(n)], getattr(attention, f"to_{n}_control")) for n in needed]
        self.base = Maps(base, fused=fused)
        self.control = Maps(folded, fused=fused)

    def forward(self, image: Tensor) -> tuple[Parts, Parts]:
        return self.base(image[0]), self.control(image[1]) if image.shape[0] == 2 else ()


class BatchedProjections(nn.Module):
    """W on X and P W on L in one batched product, (2, B·K, D) × (2, D, 3D)."""

    def __init__(self, attention: Any) -> None:
        super().__init__()
        base = [attention.to_q, attention.to_k, attention.to_v]
        folded = [fold(w, getattr(attention, f"to_{n}_control")) for n, w in zip("qkv", base, strict=True)]
        streams = [[torch.cat([w.weight for w in maps]).mT for maps in (base, folded)]]
        self.weight = nn.Parameter(torch.stack(streams[0]), requires_grad=False)
        bias = torch.stack([torch.cat([w.bias for w in maps]) for maps in (base, folded)])
        self.bias = nn.Parameter(bias.unsqueeze(1), requires_grad=False)

    def forward(self, image: Tensor) -> tuple[Parts, Parts]:
        S, B, K, _ = image.shape
        out = torch.baddbmm(self.bias[:S], image.flatten(1, 2), self.weight[:S]).unflatten(1, (B, K))
        of_x = out[0].chunk(3, dim=-1)
        return of_x, out[1].chunk(3, dim=-1) if S == 2 else ()


class StreamProjections(nn.Module):
    """Of a network without an LR stream: W on X alone."""

    def __init__(self, attention: Any, *, fused: bool) -> None:
        super().__init__()
        self.base = Maps([attention.to_q, attention.to_k, attention.to_v], fused=fused)

    def forward(self, image: Tensor) -> tuple[Parts, Parts]:
        return self.base(image[0]), ()

"""The attention of a block for inference: projections arranged anew, streams first. Legend: see projections.py.

M text tokens, H heads, d = D/H. The arithmetic is that of :class:`dit4sr.models.attention.LRStreamAttention`, or of
diffusers' joint attention where there is no LR stream.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from dit4sr.acceleration.folding import Maps
from dit4sr.acceleration.projections import (
    BatchedProjections,
    FoldedProjections,
    SharedProjections,
    StreamProjections,
)
from dit4sr.acceleration.settings import AccelerationSettings
from dit4sr.models.attention import LRStreamAttention, attend_separately, merge_heads
from dit4sr.models.attention_kernel import CHOICES

Heads = list[Tensor]
"""Parts of q, k or v on the token axis, each (B, tokens, H, d): as the products give them, so that nothing is moved."""


def attend(q: Heads, k: Heads, v: Heads) -> Heads:
    """One softmax over all parts; split as the queries were: (B, tokens, D) each."""
    whole_q, whole_k, whole_v = (torch.cat(parts, dim=1).transpose(1, 2) for parts in (q, k, v))
    out = scaled_dot_product_attention(whole_q, whole_k, whole_v)
    return list(merge_heads(out).split([part.shape[1] for part in q], dim=1))


class FastAttention(nn.Module):
    """Attention over [X; L; C], [X; L] or [X; C], from the parameters of a trained one, which it takes over.

    Args:
        attention: an :class:`LRStreamAttention`, or diffusers' attention of an SD3 block.
        settings: which arrangement.
        text: whether C takes part.
        text_ends: C gives keys and values and asks nothing.
    """

    def __init__(self, attention: Any, settings: AccelerationSettings, *, text: bool, text_ends: bool) -> None:
        super().__init__()
        self.heads: int = attention.heads
        self.kernel = settings.attention
        lr = isinstance(attention, LRStreamAttention)
        self.lr_asks = lr and not attention.lr_ends
        self.noise_keys = lr and attention.keys_from_noise
        self.separate = lr and attention.attend is attend_separately
        self.residual = attention.residual if lr else None
        self.text, self.text_ends = text, text_ends
        self.norms = nn.ModuleList(
            nn.Identity() if norm is None else norm for norm in (attention.norm_q, attention.norm_k)
        )
        self.project = projections_of(attention, settings, asks=self.lr_asks, noise_keys=self.noise_keys)
        self.out_x = attention.to_out[0]
        self.out_l = attention.to_out_control if self.lr_asks else None
        if text:
            added = [None if text_ends else attention.norm_added_q, attention.norm_added_k]
            self.text_norms = nn.ModuleList(nn.Identity() if norm is None else norm for norm in added)
            maps = [attention.add_k_proj, attention.add_v_proj]
            self.project_text = Maps(maps if text_ends else [attention.add_q_proj, *maps], fused=settings.fuse)
            self.out_text = None if text_ends else attention.to_add_out

    def forward(self, image: Tensor, text: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Attend.

        Args:
            image: X̂, or X̂ and L̂: (S, B, K, D), modulated and normalised.
            text: Ĉ, (B, M, D); None in the dual attention.

        Returns:
            (S, B, K, D), or (1, B, K, D) where L ends here; and (B, M, D), or None.
        """
        # The kernel is chosen around compiled code, which asks for its name so that none is taken of another choice.
        if self.kernel not in CHOICES:
            raise ValueError(f"there is no attention kernel {self.kernel!r}")
        norm_q, norm_k = self.norms
        of_x, of_l = self.project(image)
        x = [self.in_heads(part) for part in of_x]
        q, k, v = [norm_q(x[0])], [norm_k(x[1])], [x[2]]
        lr: tuple[Heads, Heads, Heads] = ([], [], [])
        if of_l:
            parts = [self.in_heads(part) for part in of_l]
            if self.lr_asks:
                lr[0].append(norm_q(parts.pop(0)))
            lr[1].append(norm_k(k[0]) if self.noise_keys else norm_k(parts.pop(0)))
            lr[2].append(parts.pop(0))
        c = self._text(text)

        if self.separate and of_l:
            out = attend(q + c[0], k + c[1], v + c[2])
            out[1:1] = attend(*lr)
        else:
            out = attend(q + lr[0] + c[0], k + lr[1] + c[1], v + lr[2] + c[2])

        image_out = self.out_x(out[0]).unsqueeze(0)
        if lr[0]:
            assert self.out_l is not None and self.residual is not None
            lr_out = self.out_l(self.residual(out[1], image[1]))
            image_out = torch.cat([image_out, lr_out.unsqueeze(0)])
        return image_out, self.out_text(out[-1]) if c[0] and self.out_text is not None else None

    def in_heads(self, part: Tensor) -> Tensor:
        """(B, tokens, H·d) → (B, tokens, H, d)."""
        return part.unflatten(-1, (self.heads, -1))

    def _text(self, text: Tensor | None) -> tuple[Heads, Heads, Heads]:
        if text is None:
            return [], [], []
        norm_q, norm_k = self.text_norms
        *q, k, v = (self.in_heads(part) for part in self.project_text(text))
        return [norm_q(part) for part in q], [norm_k(k)], [v]


def projections_of(attention: Any, settings: AccelerationSettings, *, asks: bool, noise_keys: bool) -> nn.Module:
    """The arrangement of the image's projections that the settings ask for, where it is possible.

    Args:
        attention: gives the parameters.
        settings: see there.
        asks: whether L asks (else its queries are not computed).
        noise_keys: L's keys are those of X: P_k W_k L̂ is not computed.
    """
    if not isinstance(attention, LRStreamAttention):
        return StreamProjections(attention, fused=settings.fuse)
    needed = ("q" if asks else "") + ("" if noise_keys else "k") + "v"
    if not settings.fold:
        return SharedProjections(attention, needed, fused=settings.fuse)
    if settings.batch_streams and needed == "qkv":
        return BatchedProjections(attention)
    return FoldedProjections(attention, needed, fused=settings.fuse)

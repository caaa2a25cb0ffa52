"""Attention of the three streams: X (noisy latent), L (LR latent) and C (text).

Legend of shapes: B batch, S = 1 or 2 image streams, K image tokens a stream, M text tokens,
D width, H heads, d = D/H. Image tokens of all streams travel in one tensor, (B, S·K, D), so
that weights shared by X and L are applied in one matrix product.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from diffusers.models.attention_processor import Attention
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from dit4sr.models.spec import LRStreamSpec


def split_heads(x: Tensor, heads: int) -> Tensor:
    """(B, N, H·d) → (B, H, N, d)."""
    return x.unflatten(-1, (heads, -1)).transpose(1, 2)


def merge_heads(x: Tensor) -> Tensor:
    """(B, H, N, d) → (B, N, H·d)."""
    return x.transpose(1, 2).flatten(2)


def attend_jointly(q: Tensor, k: Tensor, v: Tensor, tokens: int) -> Tensor:
    """LR Integration in Attention: one softmax over [X; L; C] (or [X; L] without text)."""
    return scaled_dot_product_attention(q, k, v)


def attend_separately(q: Tensor, k: Tensor, v: Tensor, tokens: int) -> Tensor:
    """Variant A (supplement, equation 1): L attends to itself; X and C attend as in SD3.

    Args:
        q, k, v: (B, H, 2K [+ M], d), in the order X, L, C.
        tokens: K.
    """
    K = tokens

    def without_lr(x: Tensor) -> Tensor:
        return torch.cat([x[:, :, :K], x[:, :, 2 * K :]], dim=2)

    base = scaled_dot_product_attention(without_lr(q), without_lr(k), without_lr(v))
    lr = scaled_dot_product_attention(q[:, :, K : 2 * K], k[:, :, K : 2 * K], v[:, :, K : 2 * K])
    return torch.cat([base[:, :, :K], lr, base[:, :, K:]], dim=2)


def add_residual(attended: Tensor, normed: Tensor) -> Tensor:
    """LR Residual: O_L + L̂."""
    return attended + normed


def no_residual(attended: Tensor, normed: Tensor) -> Tensor:
    """Variant B: O_L."""
    return attended


ATTEND: dict[str, Callable[[Tensor, Tensor, Tensor, int], Tensor]] = {
    "joint": attend_jointly,
    "separate": attend_separately,
}
RESIDUAL: dict[bool, Callable[[Tensor, Tensor], Tensor]] = {True: add_residual, False: no_residual}


class LRStreamAttention(Attention):
    """Diffusers' attention parameters, plus the control weights P_q, P_k, P_v and P_o.

    Args:
        spec: the variant.
        dim: D.
        heads: H; each has ``dim // heads`` channels.
        qk_norm: ``rms_norm`` or None.
        text: whether C takes part (False for the dual attention).
        text_ends: the last block: C gives keys and values and asks nothing.
        lr_ends: the last block of a variant without injection: L gives keys and values and
            asks nothing, since nothing reads it afterwards.
    """

    def __init__(
        self,
        spec: LRStreamSpec,
        *,
        dim: int,
        heads: int,
        qk_norm: str | None,
        text: bool,
        text_ends: bool = False,
        lr_ends: bool = False,
    ) -> None:
        text_fields: dict[str, Any] = {"added_kv_proj_dim": dim, "context_pre_only": text_ends} if text else {}
        super().__init__(
            query_dim=dim,
            cross_attention_dim=None,
            dim_head=dim // heads,
            heads=heads,
            out_dim=dim,
            bias=True,
            qk_norm=qk_norm,
            eps=1e-6,
            **text_fields,
        )
        self.to_q_control = nn.Linear(dim, dim)
        self.to_k_control = nn.Linear(dim, dim)
        self.to_v_control = nn.Linear(dim, dim)
        self.to_out_control = nn.Linear(dim, dim)
        self.attend = ATTEND[spec.attention]
        self.residual = RESIDUAL[spec.residual]
        # Without qk-norm both key sources are K_L = P_k W_k L̂.
        self.keys_from_noise = spec.key_source == "noise" and qk_norm is not None
        self.text_ends = text_ends
        self.lr_ends = lr_ends

    def unreachable(self, text: bool) -> list[str]:
        """Names of the parameters that this specification can never reach."""
        names: list[str] = []
        if self.lr_ends:
            names += ["to_q_control", "to_out_control"]
        if self.keys_from_noise:
            names += ["to_k_control"]
        if text and self.text_ends:
            names += ["add_q_proj", "norm_added_q"]
        return names

    def _lr_keys(self, k_x: Tensor, k_l: Tensor) -> Tensor:
        """K_L from the normalised K_X and the projected W_k L̂, both (B, H, K, d)."""
        if self.keys_from_noise:
            return self.norm_k(k_x)
        k_l = split_heads(self.to_k_control(k_l), self.heads)
        return k_l if self.norm_k is None else self.norm_k(k_l)

    def forward(self, image: Tensor, text: Tensor | None, streams: int) -> tuple[Tensor, Tensor | None]:
        """Attend.

        Args:
            image: X̂, or [X̂; L̂] on the token axis: (B, S·K, D), modulated and normalised.
            text: Ĉ, (B, M, D), or None.
            streams: S, 1 without the LR stream and 2 with it.

        Returns:
            W_o O_X, or [W_o O_X; P_o(O_L + L̂)] where L goes on, and W_o' O_C (None where the
            text stream ends here or takes no part).
        """
        H, K = self.heads, image.shape[1] // streams
        norm_q = self.norm_q if self.norm_q is not None else nn.Identity()
        norm_k = self.norm_k if self.norm_k is not None else nn.Identity()
        # Split rather than sliced: a split's gradient is one concatenation, a slice's is padded with zeros.
        (q_x, *q_l), (k_x, *k_l), (v_x, *v_l) = (
            linear(image).split(K, dim=1) for linear in (self.to_q, self.to_k, self.to_v)
        )
        q = norm_q(split_heads(q_x, H))
        k = norm_k(split_heads(k_x, H))
        v = split_heads(v_x, H)
        asking = K
        if streams == 2:
            if not self.lr_ends:
                q = torch.cat([q, norm_q(split_heads(self.to_q_control(q_l[0]), H))], dim=2)
                asking = 2 * K
            k = torch.cat([k, self._lr_keys(k, k_l[0])], dim=2)
            v = torch.cat([v, split_heads(self.to_v_control(v_l[0]), H)], dim=2)

        if text is not None:
            k_c = split_heads(self.add_k_proj(text), H)
            k = torch.cat([k, k_c if self.norm_added_k is None else self.norm_added_k(k_c)], dim=2)
            v = torch.cat([v, split_heads(self.add_v_proj(text), H)], dim=2)
            if not self.text_ends:
                q_c = split_heads(self.add_q_proj(text), H)
                q = torch.cat([q, q_c if self.norm_added_q is None else self.norm_added_q(q_c)], dim=2)

        attend = self.attend if streams == 2 else attend_jointly
        out = merge_heads(attend(q, k, v, K))

        out_x, *out_rest = out.split([K] * (asking // K) + [out.shape[1] - asking] * (out.shape[1] > asking), dim=1)
        image_out = self.to_out[0](out_x)
        if asking == 2 * K:
            lr_out = self.to_out_control(self.residual(out_rest[0], image.split(K, dim=1)[1]))
            image_out = torch.cat([image_out, lr_out], dim=1)
        text_out = None if text is None or self.text_ends else self.to_add_out(out_rest[-1])
        return image_out, text_out

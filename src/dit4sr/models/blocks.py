"""The MM-DiT block with an LR stream. Legend of shapes: see :mod:`dit4sr.models.attention`."""

from __future__ import annotations

from collections.abc import Callable

import torch
from diffusers.models.attention import FeedForward
from diffusers.models.normalization import AdaLayerNormContinuous, AdaLayerNormZero, SD35AdaLayerNormZeroX
from torch import Tensor, nn

from dit4sr.models.attention import LRStreamAttention
from dit4sr.models.spec import LRStreamSpec

Grid = tuple[int, int]


class LRStreamFeedForward(FeedForward):
    """SD3's MLP, plus the LR Injection between its two linear maps.

    h_X ← h_X + s·inject(h_L), with h = GELU(W_1 ·) of 4D channels. The injection's weights are
    zero-initialised (by whoever builds the network: see :mod:`dit4sr.models.initialisation`).
    """

    def __init__(self, spec: LRStreamSpec, dim: int) -> None:
        super().__init__(dim=dim, dim_out=dim, activation_fn="gelu-approximate")
        hidden = 4 * dim
        inject: dict[str, Callable[[Tensor, Tensor, Grid, float], Tensor]] = {
            "conv": self._inject_conv,
            "linear": self._inject_linear,
            "per_channel": self._inject_per_channel,
            "none": self._inject_nothing,
        }
        self.inject = inject[spec.injection]
        if spec.injection == "conv":
            self.control_conv = nn.Conv2d(hidden, hidden, kernel_size=3, padding=1, groups=hidden)
        elif spec.injection == "linear":
            self.control_linear = nn.Linear(hidden, hidden)
        elif spec.injection == "per_channel":
            self.control_scale = nn.Parameter(torch.zeros(hidden))
            self.control_shift = nn.Parameter(torch.zeros(hidden))

    def _inject_conv(self, h_x: Tensor, h_l: Tensor, grid: Grid, s: float) -> Tensor:
        # (B, K, 4D) viewed as (B, 4D, height, width) without moving memory: channels-last, in
        # which a depth-wise convolution needs no re-layout.
        h_l = h_l.unflatten(1, grid).permute(0, 3, 1, 2)
        return h_x + s * self.control_conv(h_l).permute(0, 2, 3, 1).flatten(1, 2)

    def _inject_linear(self, h_x: Tensor, h_l: Tensor, grid: Grid, s: float) -> Tensor:
        return h_x + s * self.control_linear(h_l)

    def _inject_per_channel(self, h_x: Tensor, h_l: Tensor, grid: Grid, s: float) -> Tensor:
        return h_x + s * (h_l * self.control_scale + self.control_shift)

    def _inject_nothing(self, h_x: Tensor, h_l: Tensor, grid: Grid, s: float) -> Tensor:
        return h_x

    def forward(self, image: Tensor, streams: int, grid: Grid, injection_scale: float, lr_ends: bool) -> Tensor:
        """(B, S·K, D) → the same, or (B, K, D) where the LR stream ends in this block."""
        activation, _, project = self.net
        h = activation(image)
        if streams == 2:
            h_x, h_l = h.chunk(2, dim=1)
            h_x = self.inject(h_x, h_l, grid, injection_scale)
            h = h_x if lr_ends else torch.cat([h_x, h_l], dim=1)
        return project(h)


class LRStreamBlock(nn.Module):
    """One MM-DiT block over X, L and C; without L it is diffusers' JointTransformerBlock.

    Args:
        spec: the variant.
        dim: D.
        heads: number of attention heads.
        qk_norm: ``rms_norm`` or None.
        dual_attention: whether a second attention over [X; L] runs beside the joint one.
        last: the last block: the text stream and the LR stream end here.
    """

    def __init__(
        self,
        spec: LRStreamSpec,
        *,
        dim: int,
        heads: int,
        qk_norm: str | None,
        dual_attention: bool,
        last: bool,
    ) -> None:
        super().__init__()
        self.last = last
        self.norm1 = SD35AdaLayerNormZeroX(dim) if dual_attention else AdaLayerNormZero(dim)
        if last:
            self.norm1_context: nn.Module = AdaLayerNormContinuous(
                dim, dim, elementwise_affine=False, eps=1e-6, bias=True, norm_type="layer_norm"
            )
        else:
            self.norm1_context = AdaLayerNormZero(dim)
        # In the last block L is read by the injection, or by nothing.
        self.lr_read_after_attention = not (last and spec.injection == "none")
        lr_ends = not self.lr_read_after_attention
        self.attn = LRStreamAttention(
            spec, dim=dim, heads=heads, qk_norm=qk_norm, text=True, text_ends=last, lr_ends=lr_ends
        )
        self.attn2 = (
            LRStreamAttention(spec, dim=dim, heads=heads, qk_norm=qk_norm, text=False, lr_ends=lr_ends)
            if dual_attention
            else None
        )
        self.norm2 = nn.LayerNorm(dim, elementwise_affine=False, eps=1e-6)
        self.ff = LRStreamFeedForward(spec, dim)
        if not last:
            self.norm2_context = nn.LayerNorm(dim, elementwise_affine=False, eps=1e-6)
            self.ff_context = FeedForward(dim=dim, dim_out=dim, activation_fn="gelu-approximate")

    def unreachable(self) -> list[str]:
        """Names, relative to the block, of sub-modules that no output depends on."""
        names = [f"attn.{n}" for n in self.attn.unreachable(text=True)]
        if self.attn2 is not None:
            names += [f"attn2.{n}" for n in self.attn2.unreachable(text=False)]
        return names

    def forward(
        self, image: Tensor, text: Tensor, temb: Tensor, streams: int, grid: Grid, injection_scale: float
    ) -> tuple[Tensor, Tensor]:
        """Run the block.

        Args:
            image: X, or [X; L] on the token axis: (B, S·K, D).
            text: C, (B, M, D).
            temb: embedding of the timestep and of the pooled text, (B, D).
            streams: S, 1 or 2.
            grid: (height, width) of the token grid; height·width = K.
            injection_scale: s of the LR Injection; 1 in training.

        Returns:
            image: (B, S·K, D), or X alone, (B, K, D), after the last block.
            text: (B, M, D); the last block returns it unchanged.
        """
        K = grid[0] * grid[1]
        if self.attn2 is None:
            normed, gate_msa, shift_mlp, scale_mlp, gate_mlp = self.norm1(image, emb=temb)
        else:
            normed, gate_msa, shift_mlp, scale_mlp, gate_mlp, normed2, gate_msa2 = self.norm1(image, emb=temb)
        if self.last:
            text_normed = self.norm1_context(text, temb)
        else:
            text_normed, c_gate_msa, c_shift_mlp, c_scale_mlp, c_gate_mlp = self.norm1_context(text, emb=temb)

        attended, text_attended = self.attn(normed, text_normed, streams)
        dual = None if self.attn2 is None else self.attn2(normed2, None, streams)[0]
        if streams == 2 and not self.lr_read_after_attention:
            image, streams = image[:, :K], 1
        image = image + gate_msa[:, None] * attended
        if dual is not None:
            image = image + gate_msa2[:, None] * dual

        normed = self.norm2(image) * (1 + scale_mlp[:, None]) + shift_mlp[:, None]
        update = gate_mlp[:, None] * self.ff(normed, streams, grid, injection_scale, lr_ends=self.last)
        image = (image[:, :K] if self.last else image) + update

        if not self.last:
            text = text + c_gate_msa[:, None] * text_attended
            text_normed = self.norm2_context(text) * (1 + c_scale_mlp[:, None]) + c_shift_mlp[:, None]
            text = text + c_gate_mlp[:, None] * self.ff_context(text_normed)
        return image, text

"""A block for inference: modulations come from outside, streams come first. Legend: see projections.py.

Made from a trained :class:`dit4sr.models.blocks.LRStreamBlock` or from diffusers' ``JointTransformerBlock``, whose
parameters it takes over.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import layer_norm

from dit4sr.acceleration.attention import FastAttention
from dit4sr.acceleration.expansion import Expansion
from dit4sr.acceleration.injection import injection_of
from dit4sr.acceleration.settings import AccelerationSettings
from dit4sr.models.blocks import Grid, LRStreamBlock


def modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """LayerNorm(x)·(1 + scale) + shift: x (…, B, tokens, D), shift and scale (B, 1, D)."""
    return torch.addcmul(shift, layer_norm(x, x.shape[-1:], eps=1e-6), 1 + scale)


class FastBlock(nn.Module):
    """One MM-DiT block.

    Args:
        block: a trained one; its attentions and MLPs are taken over.
        settings: how its products are arranged.
        text_ends: nobody reads the text after this block.
    """

    def __init__(self, block: Any, settings: AccelerationSettings, *, text_ends: bool) -> None:
        super().__init__()
        lr = isinstance(block, LRStreamBlock)
        self.text_ends = text_ends
        # Where nothing follows the last block's injection, L is not carried on; see LRStreamBlock.
        self.lr_ends = lr and block.last
        self.lr_read_after_attention = lr and block.lr_read_after_attention
        # The last block's text norm has two vectors, scale before shift; the others six, shift before scale.
        self.scale_first = block.last if lr else block.context_pre_only
        self.attn = FastAttention(block.attn, settings, text=True, text_ends=text_ends)
        self.attn2 = None if block.attn2 is None else FastAttention(block.attn2, settings, text=False, text_ends=True)
        fused = settings.fuse and settings.quantise == "none"
        self.expand, self.project = Expansion(block.ff.net[0], fused=fused), block.ff.net[2]
        self.inject = injection_of(block.ff, settings) if lr else None
        if not text_ends:
            self.expand_text = Expansion(block.ff_context.net[0], fused=fused)
            self.project_text = block.ff_context.net[2]

    def forward(
        self, image: Tensor, text: Tensor, of_image: Tensor, of_text: Tensor, grid: Grid, scale: Tensor | float
    ) -> tuple[Tensor, Tensor]:
        """Run the block.

        Args:
            image: X, or X and L: (S, B, K, D).
            text: C, (B, M, D).
            of_image: modulations of X and L, (B, 6D), or (B, 9D) with dual attention.
            of_text: modulations of C, (B, 6D), or (B, 2D) in the last block.
            grid: (height, width) of the token grid.
            scale: s of the LR Injection; a tensor of one value where another s is to need no other code.

        Returns:
            image: (S, B, K, D); X alone, (1, B, K, D), where L ends.
            text: (B, M, D), unchanged where the text ends.
        """
        D = image.shape[-1]
        shift, scale_msa, gate, shift_mlp, scale_mlp, gate_mlp, *second = of_image.unsqueeze(1).split(D, dim=-1)
        if self.scale_first:
            text_scale, text_shift = of_text.unsqueeze(1).split(D, dim=-1)
        else:
            text_shift, text_scale, c_gate, c_shift, c_scale, c_gate_mlp = of_text.unsqueeze(1).split(D, dim=-1)

        attended, text_attended = self.attn(modulate(image, shift, scale_msa), modulate(text, text_shift, text_scale))
        dual = None
        if self.attn2 is not None:
            dual = self.attn2(modulate(image, second[0], second[1]), None)[0]
        if not self.lr_read_after_attention:
            image = image[:1]
        image = torch.addcmul(image, gate, attended)
        if dual is not None:
            image = torch.addcmul(image, second[2], dual)

        h = self.expand(modulate(image, shift_mlp, scale_mlp))
        if self.inject is not None and h.shape[0] == 2:
            h = self.inject(h, grid, scale)
        if self.lr_ends:
            image, h = image[:1], h[:1]
        image = torch.addcmul(image, gate_mlp, self.project(h))

        if not self.text_ends:
            text = torch.addcmul(text, c_gate, text_attended)
            of_mlp = self.project_text(self.expand_text(modulate(text, c_shift, c_scale)))
            text = torch.addcmul(text, c_gate_mlp, of_mlp)
        return image, text


def is_block_matrix(name: str, module: nn.Module) -> bool:
    """Whether a module of a network is a matrix of a block (nine tenths of the work): what may be quantised."""
    return isinstance(module, nn.Linear) and ".blocks." in f".{name}"

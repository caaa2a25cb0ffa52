"""What the transformers have in common: embeddings, modulations and blocks. Legend: see projections.py."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from dit4sr.acceleration.blocks import FastBlock
from dit4sr.acceleration.modulations import Modulations
from dit4sr.acceleration.settings import AccelerationSettings
from dit4sr.models.blocks import Grid

GRIDS_KEPT = 4
"""Crops of the positional table that are kept, one a grid."""


class PatchEmbedding(nn.Module):
    """Diffusers' patch embedding with its crops of the positional table kept."""

    def __init__(self, embed: Any) -> None:
        super().__init__()
        self.embed = embed
        self.kept: dict[tuple[Grid, torch.device, torch.dtype], Tensor] = {}

    def position(self, grid: Grid) -> Tensor | None:
        """(1, K, D); None where the embedding knows no places."""
        if self.embed.pos_embed is None:
            return None
        table = self.embed.pos_embed
        key = (grid, table.device, table.dtype)
        if key not in self.kept:
            while len(self.kept) >= GRIDS_KEPT:
                self.kept.pop(next(iter(self.kept)))
            patch = self.embed.patch_size
            # Not as an inference tensor: the next call may be outside of inference mode.
            with torch.inference_mode(False), torch.no_grad():
                self.kept[key] = self.embed.cropped_pos_embed(grid[0] * patch, grid[1] * patch).contiguous()
        return self.kept[key]

    def forward(self, latent: Tensor, position: Tensor | None) -> Tensor:
        """(B, C, H, W) → (B, K, D)."""
        # Token by token in memory: all that follows inherits the order.
        tokens = self.embed.proj(latent).flatten(2).mT.contiguous()
        return tokens if position is None else (tokens + position).to(tokens.dtype)


class Trunk(nn.Module):
    """What the three transformers have in common: patch embedding, text embedding, modulations and blocks.

    Args:
        transformer: DiT4SR, SD3's transformer, or its ControlNet; its parameters are taken over.
        settings: how products are arranged.
        blocks: how many of its blocks are run; nobody reads the text after the last.
        ends: the norm of the output, where there is one.
    """

    def __init__(
        self, transformer: Any, settings: AccelerationSettings, *, blocks: int, ends: Any | None = None
    ) -> None:
        super().__init__()
        self.embed = PatchEmbedding(transformer.pos_embed)
        self.embed_text = transformer.context_embedder
        trained = list(transformer.transformer_blocks)[:blocks]
        norms = [norm for block in trained for norm in (block.norm1, block.norm1_context)]
        norms += [] if ends is None else [ends]
        self.modulations = Modulations(transformer.time_text_embed, [norm.linear for norm in norms])
        self.blocks = nn.ModuleList()
        for i in range(blocks):
            # One at a time, and the trained one let go of, so that no more than one block is there twice.
            self.blocks.append(FastBlock(trained[i], settings, text_ends=i == blocks - 1))
            trained[i] = transformer.transformer_blocks[i] = nn.Identity()

    def split(self, modulation: Tensor) -> tuple[Tensor, ...]:
        """(B, G) → the modulations of each norm, those of the image and the text by turns."""
        return modulation.split(self.modulations.sizes, dim=-1)

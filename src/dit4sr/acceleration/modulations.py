"""The modulations of all blocks (adaLN) at once: for the whole schedule ahead of its steps, or for one step.

They follow from the timestep and the pooled text alone. A step that computes them reads every modulation matrix
(0.77 G weights of SD3.5-Medium's 2.2 G) to make a handful of vectors, which is a read of memory and no arithmetic to
speak of; for all steps together it is read once.

Legend: T steps, B batch, D width, G values of all modulations of a network.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import silu

WINDOW_BYTES = 2**28
"""Modulations are kept for so many steps ahead as fit: 256 steps of one guided image of SD3.5-Medium in bfloat16."""


class Modulations(nn.Module):
    """The linear maps of all modulations of a network, taken over from its blocks.

    Args:
        embed: diffusers' embedding of the timestep and the pooled text.
        linears: the maps of SiLU(temb), one a modulated norm, each D → n·D.
    """

    def __init__(self, embed: Any, linears: Sequence[nn.Module]) -> None:
        super().__init__()
        self.embed = embed
        self.linears = nn.ModuleList(linears)
        self.sizes = [int(linear.out_features) for linear in linears]  # type: ignore[arg-type]

    def at(self, timestep: Tensor, pooled: Tensor) -> Tensor:
        """Of one step: timestep (B,) and pooled (B, P) → (B, G)."""
        return self._of(self.embed(timestep, pooled))

    def over(self, timesteps: Tensor, pooled: Tensor) -> Tensor:
        """Of the steps (T,): pooled (B, P) → (T, B, G), in one product a norm."""
        time = self.embed.timestep_embedder(self.embed.time_proj(timesteps).to(pooled.dtype))
        return self._of(time.unsqueeze(1) + self.embed.text_embedder(pooled))

    def _of(self, temb: Tensor) -> Tensor:
        activated = silu(temb)
        return torch.cat([linear(activated) for linear in self.linears], dim=-1)

    def window(self, batch: int, dtype: torch.dtype) -> int:
        """Steps whose modulations are computed together."""
        return max(1, WINDOW_BYTES // (batch * sum(self.sizes) * dtype.itemsize))


class Schedule:
    """Modulations of the steps of one sampling, computed some steps ahead so that their memory is bounded.

    Args:
        modulations: see there.
        timesteps: (T,), 1000σ of each step.
        pooled: (B, P), in the weights' type.
    """

    def __init__(self, modulations: Modulations, timesteps: Tensor, pooled: Tensor) -> None:
        self.modulations, self.timesteps, self.pooled = modulations, timesteps, pooled
        self.ahead = modulations.window(len(pooled), pooled.dtype)
        self.first, self.computed = 0, pooled.new_empty(0)

    def at(self, step: int) -> Tensor:
        """(B, G) of a step."""
        if not self.first <= step < self.first + len(self.computed):
            self.first = step
            self.computed = self.modulations.over(self.timesteps[step : step + self.ahead], self.pooled)
        return self.computed[step - self.first]

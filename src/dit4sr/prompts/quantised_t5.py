"""T5 with its blocks' matrices in 8 bits or 4."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from dit4sr.prompts.weight_bytes import is_t5_matrix
from dit4sr.quantising import quantise


class WithoutWeight(nn.Module):
    """A map whose weight cannot be seen.

    Transformers brings what its T5 feeds into ``wo`` to the type of that map's weight. Four-bit weights are stored as
    whole numbers, which is no type to compute in.

    Args:
        linear: the map.
    """

    weight = None

    def __init__(self, linear: nn.Module) -> None:
        super().__init__()
        self.linear = linear

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x)


def quantise_t5(model: Any, kind: str, device: torch.device) -> None:
    """Quantise in place, matrix by matrix on the device; what is no matrix of a block stays where it is.

    Args:
        model: transformers' ``T5EncoderModel``.
        kind: int8_weights or nf4; see :func:`dit4sr.quantising.need_package` first.
        device: where it is going to be.
    """
    quantise(model, kind, device, lambda name, _: is_t5_matrix(name))
    for part in list(model.modules()):
        wo = getattr(part, "wo", None)
        if wo is not None and not wo.weight.is_floating_point():
            part.wo = WithoutWeight(wo)

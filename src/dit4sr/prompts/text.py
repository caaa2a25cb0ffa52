"""The interface of text encoders."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class TextEmbedding:
    """Embedded prompts: ``tokens`` (B, M, W) for the text stream, ``pooled`` (B, P) for the modulation."""

    tokens: Tensor
    pooled: Tensor

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> TextEmbedding:
        """Move both tensors to a device, or a dtype, or both."""
        return TextEmbedding(self.tokens.to(device=device, dtype=dtype), self.pooled.to(device=device, dtype=dtype))


class TextEncoder(Protocol):
    """What training and restoration need of a text encoder."""

    tokens: int
    """Tokens of a prompt, M."""
    width: int
    """Channels of a token, W."""
    pooled_width: int
    """Channels of the pooled vector, P."""

    def encode(self, prompts: list[str]) -> TextEmbedding:
        """Embed B prompts; "" is the null prompt of guidance."""
        ...

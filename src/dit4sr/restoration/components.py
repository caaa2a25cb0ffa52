"""The embedded default's text encoder as a component that diffusers can save and load."""

from __future__ import annotations

# diffusers looks for ModelMixin in the module of a component that it loads.
from diffusers import ModelMixin  # noqa: F401
from diffusers.configuration_utils import register_to_config
from torch import Tensor

from dit4sr.prompts import HashingTextEncoder, TextEmbedding
from dit4sr.weightless import WeightlessModel


class HashingTextModel(WeightlessModel):
    """:class:`dit4sr.prompts.HashingTextEncoder` with a config.json; it has no weights.

    Args:
        tokens, width, pooled_width: see there.
    """

    @register_to_config
    def __init__(self, tokens: int, width: int, pooled_width: int) -> None:
        super().__init__()
        self.encoder = HashingTextEncoder(tokens, width, pooled_width)
        # What says, in diffusers, where a component is and in which dtype.
        self.register_buffer("place", Tensor(0), persistent=False)

    def encode(self, prompts: list[str]) -> TextEmbedding:
        """Embed B prompts on the CPU: tokens (B, M, W), pooled (B, P)."""
        return self.encoder.encode(prompts)

    forward = encode

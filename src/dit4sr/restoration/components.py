"""A pipeline's parts as components that diffusers can save and load."""

from __future__ import annotations

from typing import Any

# diffusers looks for ModelMixin in the module of a component that it loads.
from diffusers import ModelMixin, SD3Transformer2DModel  # noqa: F401
from diffusers.configuration_utils import register_to_config
from diffusers.utils import logging
from torch import Tensor

from dit4sr.models import DiT4SRTransformer2DModel, LRStreamSpec
from dit4sr.prompts import HashingTextEncoder, TextEmbedding
from dit4sr.weightless import WeightlessModel

logger = logging.get_logger(__name__)

PUBLISHED_SPEC = LRStreamSpec(attention="joint", residual=True, injection="conv", key_source="lr")


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


def with_lr_stream(transformer: Any) -> Any:
    """The network itself; a plain SD3 transformer gets an LR stream, and a warning says that it is not trained."""
    if not isinstance(transformer, SD3Transformer2DModel):
        return transformer
    logger.warning(
        "this transformer has no LR stream: one is added that is not trained, so nothing is restored before its "
        "weights are loaded (or pass transformer=DiT4SRTransformer2DModel.from_pretrained(…))"
    )
    return DiT4SRTransformer2DModel.from_sd3(transformer, PUBLISHED_SPEC)


def as_component(encoder: Any) -> Any:
    """A text encoder as it is, or the embedded default's as a model."""
    if not isinstance(encoder, HashingTextEncoder):
        return encoder
    return HashingTextModel(encoder.tokens, encoder.width, encoder.pooled_width)

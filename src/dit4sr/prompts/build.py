"""From a backbone's config to its text encoder."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dit4sr.errors import UserError
from dit4sr.prompts.text import TextEncoder


def build_text_encoder(config: Mapping[str, Any], pretrained: str | None) -> TextEncoder:
    """Build the text encoder of a backbone.

    Args:
        config: ``backbone.text_encoder``: name (hashing or sd3), tokens, width, pooled_width.
        pretrained: ``backbone.pretrained``: folder or hub id of Stable Diffusion 3 in diffusers' layout.

    Raises:
        UserError: an unknown name, no ``pretrained`` where weights are needed, or weights of other widths.
    """
    sizes = {key: int(config[key]) for key in ("tokens", "width", "pooled_width")}
    if config["name"] == "hashing":
        from dit4sr.prompts.hashing import HashingTextEncoder

        return HashingTextEncoder(**sizes)
    if config["name"] == "sd3":
        if pretrained is None:
            raise UserError(
                "text_encoder sd3 needs weights: set backbone.pretrained to a folder with text_encoder, "
                "text_encoder_2, text_encoder_3, tokenizer, tokenizer_2 and tokenizer_3 (those of Stable "
                "Diffusion 3.5 in diffusers' layout), or to its hub id."
            )
        from dit4sr.prompts.sd3 import SD3TextEncoder

        return SD3TextEncoder.from_pretrained(pretrained, **sizes)
    raise UserError(f"unknown text_encoder {config['name']!r}: choose hashing or sd3.")

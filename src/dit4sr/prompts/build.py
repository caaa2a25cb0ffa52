"""From a backbone's config to its text encoder."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dit4sr.errors import UserError
from dit4sr.prompts.settings import PromptSettings
from dit4sr.prompts.text import TextEncoder


def build_text_encoder(
    config: Mapping[str, Any],
    pretrained: str | None,
    prompt: PromptSettings | None = None,
    *,
    local_files_only: bool = False,
) -> TextEncoder:
    """Build the text encoder of a backbone. Weights are loaded at the first prompt that needs them.

    Args:
        config: ``backbone.text_encoder``: name (hashing or sd3), tokens, width, pooled_width. The widths of sd3
            are its folder's own; those of the config serve to plan a network without weights.
        pretrained: ``backbone.pretrained``: folder or hub id of Stable Diffusion 3 in diffusers' layout.
        prompt: how to encode; by default live.
        local_files_only: download nothing.

    Raises:
        UserError: an unknown name, no ``pretrained`` where weights are needed, an incomplete folder, or a package that
            quantising needs and that is not installed.
    """
    prompt = prompt or PromptSettings()
    encoder: TextEncoder
    # In the null mode the disk is worth its while only where there are weights to leave out.
    cached = prompt.encoding == "cached" or (prompt.encoding == "null" and config["name"] != "hashing")
    if config["name"] == "hashing":
        from dit4sr.prompts.hashing import HashingTextEncoder

        encoder = HashingTextEncoder(**{key: int(config[key]) for key in ("tokens", "width", "pooled_width")})
    elif config["name"] == "sd3":
        if pretrained is None:
            raise UserError(
                "text_encoder sd3 needs weights: set backbone.pretrained to a folder with text_encoder, "
                "text_encoder_2, text_encoder_3, tokenizer, tokenizer_2 and tokenizer_3 (those of Stable "
                "Diffusion 3.5 in diffusers' layout), or to its hub id."
            )
        import torch

        from dit4sr.prompts.sd3 import SD3TextEncoder

        encoder = SD3TextEncoder.from_pretrained(
            pretrained,
            tokens=int(config["tokens"]),
            dtype=None if prompt.dtype == "auto" else getattr(torch, prompt.dtype),
            width=int(config.get("width") or 0),
            local_files_only=local_files_only,
            keep=cached or not prompt.release,
            quantise=prompt.quantise,
        )
    else:
        raise UserError(f"unknown text_encoder {config['name']!r}: choose hashing or sd3.")
    if not cached:
        return encoder
    if prompt.cache is None:
        raise UserError(f"prompt.encoding={prompt.encoding} needs prompt.cache=<folder>")
    from dit4sr.prompts.cache import CachedTextEncoder

    return CachedTextEncoder(encoder, prompt.cache, release=prompt.release)

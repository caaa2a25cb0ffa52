"""Prompts → what the network's text stream takes."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dit4sr.prompts.build import build_text_encoder
    from dit4sr.prompts.captioners import build_captioner
    from dit4sr.prompts.captions import Captions, build_captions
    from dit4sr.prompts.hashing import HashingTextEncoder
    from dit4sr.prompts.settings import PromptSettings
    from dit4sr.prompts.text import TextEmbedding, TextEncoder, embedding_from_bytes, embedding_to_bytes

_MODULES = {
    "Captions": "captions",
    "HashingTextEncoder": "hashing",
    "PromptSettings": "settings",
    "TextEmbedding": "text",
    "TextEncoder": "text",
    "build_captioner": "captioners",
    "build_captions": "captions",
    "build_text_encoder": "build",
    "embedding_from_bytes": "text",
    "embedding_to_bytes": "text",
}

__all__ = [
    "Captions",
    "HashingTextEncoder",
    "PromptSettings",
    "TextEmbedding",
    "TextEncoder",
    "build_captioner",
    "build_captions",
    "build_text_encoder",
    "embedding_from_bytes",
    "embedding_to_bytes",
]


def __getattr__(name: str) -> Any:
    """Import a public name at its first use: some need torch, which takes seconds, and settings do not."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)

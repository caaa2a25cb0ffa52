"""Prompts → what the network's text stream takes."""

from dit4sr.prompts.build import build_text_encoder
from dit4sr.prompts.hashing import HashingTextEncoder
from dit4sr.prompts.text import TextEmbedding, TextEncoder

__all__ = ["HashingTextEncoder", "TextEmbedding", "TextEncoder", "build_text_encoder"]

"""Prompts → what the network's text stream takes."""

from dit4sr.prompts.hashing import HashingTextEncoder
from dit4sr.prompts.text import TextEmbedding, TextEncoder, build_text_encoder

__all__ = ["HashingTextEncoder", "TextEmbedding", "TextEncoder", "build_text_encoder"]

"""A text encoder without weights: every word has a fixed random vector, as in feature hashing."""

from __future__ import annotations

import re
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from dit4sr.prompts.text import TextEmbedding
from dit4sr.randomness import numpy_generator

POSITION_STD = 0.5  # of a position's vector, beside a word's 1


class HashingTextEncoder:
    """Token n is the vector of the n-th word plus the vector of position n; the rest is the padding vector.

    Words are the runs of letters and digits, in lower case, as many as there are tokens. A word's entries are
    standard normal draws that follow from its letters alone, the same in every run and on every machine. The
    pooled vector is the sum of the words' own pooled vectors over √(number of words). The null prompt "" (any
    prompt without a word) is all padding, its pooled vector zero.

    Args:
        tokens: tokens of a prompt, M.
        width: channels of a token, W.
        pooled_width: channels of the pooled vector, P.
    """

    def __init__(self, tokens: int, width: int, pooled_width: int) -> None:
        self.tokens = tokens
        self.width = width
        self.pooled_width = pooled_width
        self._padding = _gaussian("padding", width)
        self._positions = torch.stack([_gaussian(f"position {n}", width) for n in range(tokens)]) * POSITION_STD

    def encode(self, prompts: list[str]) -> TextEmbedding:
        """Embed B prompts on the CPU, float32: tokens (B, M, W), pooled (B, P)."""
        embedded = [self._encode_one(prompt) for prompt in prompts]
        return TextEmbedding(torch.stack([t for t, _ in embedded]), torch.stack([p for _, p in embedded]))

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> HashingTextEncoder:
        """Nothing to move: there are no weights."""
        return self

    def release(self) -> None:
        """Nothing to drop: there are no weights."""

    def identity(self, memo: Path | None = None) -> str:
        """The three sizes."""
        return f"hashing {self.tokens} {self.width} {self.pooled_width}"

    def _encode_one(self, prompt: str) -> tuple[Tensor, Tensor]:
        words = re.findall(r"[^\W_]+", prompt.lower())[: self.tokens]
        tokens = self._padding.repeat(self.tokens, 1)
        pooled = torch.zeros(self.pooled_width)
        for n, word in enumerate(words):
            tokens[n] = _gaussian(f"word {word}", self.width) + self._positions[n]
            pooled += _gaussian(f"pooled {word}", self.pooled_width) / len(words) ** 0.5
        return tokens, pooled


@lru_cache(1 << 14)
def _gaussian(what: str, size: int) -> Tensor:
    """Return standard normal draws, (size,) float32, that follow from ``what``; not to be written to."""
    raw = numpy_generator(0, 0, what).bit_generator.random_raw(size)
    # By the inverse distribution function: NumPy's and torch's own draws may change with their versions, and
    # trained networks depend on these numbers.
    u = ((raw >> np.uint64(11)).astype(np.float64) + 0.5) * 2.0**-53
    return torch.special.ndtri(torch.from_numpy(u)).float()

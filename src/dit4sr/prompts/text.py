"""Embedded prompts, their bytes, and the interface of text encoders."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

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

    def __getitem__(self, index: int) -> TextEmbedding:
        """The embedding of one prompt, as a batch of one."""
        return TextEmbedding(self.tokens[index][None], self.pooled[index][None])

    @classmethod
    def cat(cls, embeddings: list[TextEmbedding]) -> TextEmbedding:
        """One batch of several."""
        return cls(torch.cat([e.tokens for e in embeddings]), torch.cat([e.pooled for e in embeddings]))


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

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> Any:
        """Choose where, and in which dtype, it computes."""
        ...

    def release(self) -> None:
        """Drop the weights from memory; the next :meth:`encode` that needs them loads them again."""
        ...

    def identity(self, memo: Path | None = None) -> str:
        """All that an embedding depends on beside the prompt, weights by their content.

        Args:
            memo: see :func:`dit4sr.prompts.identity.folder_digest`.
        """
        ...


NOTE = "dit4sr"
"""Key of the files' metadata: a JSON object with the tensors' checksum and, where it is known, the prompt."""


def embedding_to_bytes(
    embedding: TextEmbedding, dtype: torch.dtype | None = torch.bfloat16, prompt: str | None = None
) -> bytes:
    """One prompt's embedding as a safetensors file: ``tokens`` (M, W) and ``pooled`` (P,), with a checksum.

    Equal embeddings give equal bytes.

    Args:
        embedding: of a single prompt, B = 1.
        dtype: of the file; None keeps the embedding's own.
        prompt: to be noted in the file's header.
    """
    from safetensors.torch import save

    assert len(embedding.tokens) == len(embedding.pooled) == 1, "one prompt a file"
    moved = embedding.to("cpu", dtype)
    tensors = {"tokens": moved.tokens[0].detach().contiguous(), "pooled": moved.pooled[0].detach().contiguous()}
    note = {"sha256": _checksum(tensors)}
    if prompt is not None:
        note["prompt"] = prompt.encode("utf-8", "replace").decode()
    # One entry: safetensors writes several in any order, and the same embedding shall have the same bytes.
    return save(tensors, {NOTE: json.dumps(note, sort_keys=True, ensure_ascii=False)})


def embedding_from_bytes(data: bytes) -> TextEmbedding:
    """The inverse of :func:`embedding_to_bytes`: tokens (1, M, W) and pooled (1, P), on the CPU, in the file's dtype.

    Raises:
        ValueError: the bytes are no such file, or were changed since.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load

    try:
        tensors = load(data)
    except SafetensorError as error:
        raise ValueError(f"not an embedded prompt: {error}") from error
    if set(tensors) != {"tokens", "pooled"} or tensors["tokens"].ndim != 2 or tensors["pooled"].ndim != 1:
        raise ValueError("not an embedded prompt: it holds other tensors than tokens (M, W) and pooled (P,)")
    size = int.from_bytes(data[:8], "little")  # of the header, which safetensors has checked
    note = json.loads(data[8 : 8 + size]).get("__metadata__", {}).get(NOTE)
    if note is not None and json.loads(note)["sha256"] != _checksum(tensors):
        raise ValueError("not the embedded prompt that was written: the checksum differs")
    return TextEmbedding(tensors["tokens"][None], tensors["pooled"][None])


def _checksum(tensors: dict[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name in ("tokens", "pooled"):
        digest.update(tensors[name].view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()

"""Where prompts are embedded: with the network, on the CPU, or on the device before the network comes there.

Stable Diffusion 3's text encoders take twice the memory of the network that they serve (11.2 GB in bfloat16, T5 9.5
of them; from float16 files 2.0 more), and are done before it begins. Where all prompts are known ahead, both need never
be on a GPU together.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch

from dit4sr.errors import UserError
from dit4sr.prompts.cache import CachedTextEncoder
from dit4sr.prompts.settings import check_text_device
from dit4sr.prompts.text import TextEmbedding, TextEncoder

ROOM = 0.75
"""Share of a GPU's free memory that encoders and network may fill together; the rest is for what they compute."""
COMPUTING = 0.6e9
"""Bytes for what an encoder computes of 32 prompts at once where it is on a GPU by itself (T5 in float32, counted)."""
LATER = 64
"""So many embeddings of prompts that were not known ahead are kept in memory."""


class EncodedAhead:
    """An encoder whose prompts are embedded ahead, after which its weights leave memory.

    A prompt that was not known then is embedded on the CPU, where the weights then stay. What a cached encoder has
    embedded is on the disk, and is read from there.

    Args:
        encoder: computes on the CPU from here on, but for :meth:`prepare`.
    """

    def __init__(self, encoder: TextEncoder) -> None:
        self.encoder = encoder
        self.tokens, self.width, self.pooled_width = encoder.tokens, encoder.width, encoder.pooled_width
        self.device = torch.device("cpu")
        self._known: dict[str, TextEmbedding] = {}
        self._later: dict[str, TextEmbedding] = {}
        encoder.to("cpu")

    def prepare(self, prompts: Iterable[str], device: torch.device) -> None:
        """Embed prompts on a device, one encoder of several after the other, and leave the device.

        Args:
            prompts: all that will be asked for. Of a cached encoder they are kept on the disk, else in the CPU's memory
                (of Stable Diffusion 3 1.3 MB each).
            device: where to compute.

        Raises:
            UserError: the encoder cannot be loaded, or has no room there.
        """
        missing = [prompt for prompt in dict.fromkeys(prompts) if prompt not in self._known]
        if not missing:
            return
        # One behind a cache of embeddings is the one that has weights.
        inner: Any = getattr(self.encoder, "encoder", self.encoder)
        try:
            self.encoder.to(device)
            if hasattr(inner, "in_turn"):
                inner.in_turn = True
            if isinstance(self.encoder, CachedTextEncoder):
                self.encoder.precompute(missing)
            else:
                # Not as inference tensors, whatever the caller is in.
                with torch.inference_mode(False), torch.no_grad():
                    embedded = self.encoder.encode(missing).to("cpu")
                self._known |= {prompt: embedded[n] for n, prompt in enumerate(missing)}
        except torch.OutOfMemoryError as error:
            raise UserError(
                f"the text encoders have no room in the free memory of {device}: set text_encoder_device=cpu"
            ) from error
        finally:
            if hasattr(inner, "in_turn"):
                inner.in_turn = False
            self.encoder.release()
            self.encoder.to("cpu")

    def encode(self, prompts: list[str]) -> TextEmbedding:
        """Embed B prompts: tokens (B, M, W), pooled (B, P), in the encoder's type."""
        if isinstance(self.encoder, CachedTextEncoder):
            return self.encoder.encode(prompts).to(self.device)
        found: dict[str, TextEmbedding] = {}
        for prompt in dict.fromkeys(prompts):
            embedding = self._known.get(prompt) or self._later.get(prompt)
            if embedding is None:
                embedding = self._later[prompt] = self.encoder.encode([prompt])
            found[prompt] = embedding
        while len(self._later) > LATER:
            del self._later[next(iter(self._later))]  # the first that came
        return TextEmbedding.cat([found[prompt] for prompt in prompts]).to(self.device)

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> EncodedAhead:
        """Choose where embeddings go; another dtype forgets those that are there."""
        self.device = torch.device(device) if device is not None else self.device
        if dtype is not None:
            self.encoder.to(None, dtype)
            self._known.clear()
            self._later.clear()
        return self

    def release(self) -> None:
        """Drop the encoder's weights from memory."""
        self.encoder.release()

    def identity(self, memo: Path | None = None) -> str:
        """That of the encoder."""
        return self.encoder.identity(memo)


def placed(
    encoder: TextEncoder, where: str, device: torch.device, prompts: Iterable[str], network_bytes: int
) -> TextEncoder:
    """A text encoder where ``text_encoder_device`` says, before the network is brought to its device.

    Args:
        encoder: with no weights in memory yet.
        where: see :data:`dit4sr.prompts.settings.TEXT_DEVICES`.
        device: the network's.
        prompts: those that will be asked for, as far as they are known.
        network_bytes: what the network takes there.

    Raises:
        UserError: for another place, or an encoder that cannot be loaded or has no room there.
    """
    if check_text_device(where) == "auto":
        where = best_place(encoder, device, network_bytes)
        if where == "cpu":
            print(f"the text encoders have no room on {device}: they compute on the CPU", file=sys.stderr)
    if where != "offload":
        encoder.to("cpu" if where == "cpu" else device)
        return encoder
    ahead = EncodedAhead(encoder)
    ahead.prepare(prompts, device)
    return ahead


def best_place(encoder: TextEncoder, device: torch.device, network_bytes: int) -> str:
    """What ``auto`` means: network, offload or cpu; always with the network where that is on the CPU."""
    if device.type != "cuda":
        return "network"
    inner: Any = getattr(encoder, "encoder", encoder)
    sizes = getattr(inner, "weight_bytes", {})
    return roomiest(sizes.values(), network_bytes, torch.cuda.mem_get_info(device)[0])


def roomiest(encoders: Iterable[int], network: int, free: int) -> str:
    """Where encoders have room: beside the network, one by one before it, or nowhere on the GPU.

    Args:
        encoders: bytes of each one's weights.
        network: bytes of the network's.
        free: bytes on the GPU.

    Returns:
        network, offload or cpu.
    """
    sizes = list(encoders)
    if sum(sizes) + network < ROOM * free:
        return "network"
    return "offload" if max(sizes, default=0) + COMPUTING < free else "cpu"

"""Where prompts are embedded: with the network, on the CPU, or on the device before the network comes there.

Stable Diffusion 3's text encoders take twice the memory of the network that they serve (11.2 GB of 16-bit weights, T5
9.5 of them), and are done before it begins. Where all prompts are known ahead, both need never be on a GPU together.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch

from dit4sr.prompts.cache import CachedTextEncoder
from dit4sr.prompts.settings import check_text_device
from dit4sr.prompts.text import TextEmbedding, TextEncoder

ROOM = 0.75
"""Share of a GPU's free memory that encoders and network may fill together; the rest is for what they compute."""


class EncodedAhead:
    """An encoder whose prompts are embedded ahead, after which its weights leave memory.

    A prompt that was not known then is embedded on the CPU, where the weights then stay.

    Args:
        encoder: computes on the CPU from here on, but for :meth:`prepare`.
    """

    def __init__(self, encoder: TextEncoder) -> None:
        self.encoder = encoder
        self.tokens, self.width, self.pooled_width = encoder.tokens, encoder.width, encoder.pooled_width
        self.device = torch.device("cpu")
        self._known: dict[str, TextEmbedding] = {}
        encoder.to("cpu")

    def prepare(self, prompts: Iterable[str], device: torch.device) -> None:
        """Embed prompts on a device, one encoder of several after the other, and leave the device.

        Args:
            prompts: all that will be asked for. Of a cached encoder they are kept on the disk, else in the CPU's memory
                (of Stable Diffusion 3 1.3 MB each).
            device: where to compute.

        Raises:
            UserError: the encoder cannot be loaded.
        """
        missing = [prompt for prompt in dict.fromkeys(prompts) if prompt not in self._known]
        if not missing:
            return
        # One behind a cache of embeddings is the one that has weights.
        inner: Any = getattr(self.encoder, "encoder", self.encoder)
        self.encoder.to(device)
        if hasattr(inner, "in_turn"):
            inner.in_turn = True
        try:
            if isinstance(self.encoder, CachedTextEncoder):
                self.encoder.precompute(missing)
            else:
                # Not as inference tensors, whatever the caller is in.
                with torch.inference_mode(False), torch.no_grad():
                    embedded = self.encoder.encode(missing).to("cpu")
                self._known |= {prompt: embedded[n] for n, prompt in enumerate(missing)}
        finally:
            if hasattr(inner, "in_turn"):
                inner.in_turn = False
            self.encoder.release()
            self.encoder.to("cpu")

    def encode(self, prompts: list[str]) -> TextEmbedding:
        """Embed B prompts: tokens (B, M, W), pooled (B, P), in the encoder's type."""
        if unknown := [prompt for prompt in dict.fromkeys(prompts) if prompt not in self._known]:
            self._known |= {prompt: self.encoder.encode([prompt]) for prompt in unknown}
        return TextEmbedding.cat([self._known[prompt] for prompt in prompts]).to(self.device)

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> EncodedAhead:
        """Choose where embeddings go; another dtype forgets those that are there."""
        self.device = torch.device(device) if device is not None else self.device
        if dtype is not None:
            self.encoder.to(None, dtype)
            self._known.clear()
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
        UserError: for another place, or an encoder that cannot be loaded.
    """
    if check_text_device(where) == "auto":
        where = "network" if fit_together(encoder, device, network_bytes) else "offload"
    if where != "offload":
        encoder.to("cpu" if where == "cpu" else device)
        return encoder
    ahead = EncodedAhead(encoder)
    ahead.prepare(prompts, device)
    return ahead


def fit_together(encoder: TextEncoder, device: torch.device, network_bytes: int) -> bool:
    """Whether a device's free memory has room for encoders and network at once; always so on the CPU."""
    if device.type != "cuda":
        return True
    inner: Any = getattr(encoder, "encoder", encoder)
    free, _ = torch.cuda.mem_get_info(device)
    return bool(getattr(inner, "nbytes", 0) + network_bytes < ROOM * free)

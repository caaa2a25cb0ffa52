"""The autoencoder made faster: channels-last convolutions (exact), half precision and a tiny decoder (approximate)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from dit4sr.acceleration.settings import AccelerationSettings
from dit4sr.autoencoders import Autoencoder, DiffusersAutoencoder, build_autoencoder
from dit4sr.errors import UserError


class DecodedBy(nn.Module):
    """One autoencoder's latents, decoded by another; see :class:`dit4sr.autoencoders.Autoencoder`.

    Args:
        encoder: encodes.
        decoder: decodes; of the same latents.

    Raises:
        UserError: where their latents differ in shape.
    """

    def __init__(self, encoder: Any, decoder: Any) -> None:
        super().__init__()
        if (encoder.channels, encoder.scale) != (decoder.channels, decoder.scale):
            raise UserError(
                f"acceleration.tiny_vae decodes latents of {decoder.channels} channels and {decoder.scale} pixels, "
                f"this backbone's have {encoder.channels} and {encoder.scale}: give another"
            )
        self.encoder, self.decoder = encoder, decoder
        self.scale, self.channels, self.has_posterior = encoder.scale, encoder.channels, encoder.has_posterior

    def encode(self, image: Tensor, noise: Tensor | None = None) -> Tensor:
        return self.encoder.encode(image, noise)

    def decode(self, latent: Tensor) -> Tensor:
        return self.decoder.decode(latent)


def accelerate_autoencoder(
    autoencoder: Autoencoder,
    settings: AccelerationSettings,
    device: torch.device,
    *,
    local_files_only: bool = False,
) -> Autoencoder:
    """An autoencoder as the settings say; the block DCT, which has no layers, only takes a decoder.

    Args:
        autoencoder: see :class:`dit4sr.autoencoders.Autoencoder`; it is changed.
        settings: ``channels_last``, ``autoencoder_dtype`` and ``tiny_vae`` count here.
        device: where it is.
        local_files_only: never ask the hub for the tiny one.

    Raises:
        UserError: for a tiny autoencoder that cannot be loaded, or is of other latents.
    """
    result: Any = autoencoder
    if settings.tiny_vae is not None:
        config = {"name": "tiny", "source": settings.tiny_vae}
        tiny: Any = build_autoencoder(config, None, local_files_only=local_files_only)
        result = DecodedBy(autoencoder, tiny.to(device))
    for part in (autoencoder, getattr(result, "decoder", None)):
        if not isinstance(part, DiffusersAutoencoder):
            continue
        if settings.autoencoder_dtype is not None:
            part.model.to(getattr(torch, settings.autoencoder_dtype))
        if settings.channels_last:
            part.model.to(memory_format=torch.channels_last)
    return result

"""The restored latent of a batch of images that a pipeline was given: its noise drawn or given, encoded and sampled."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from dit4sr.autoencoders import Autoencoder
from dit4sr.errors import UserError
from dit4sr.restoration.restoring import Conditions, Plan, encode_lr, noise_of, sample
from dit4sr.restoration.sampler_settings import SamplerSettings
from dit4sr.sampling import Network
from dit4sr.tiles import TileSettings


def restored_latent(
    network: Network,
    coder: Autoencoder,
    plan: Plan,
    noise: Tensor | None,
    generators: Sequence[torch.Generator] | None,
    conditions: Conditions,
    settings: SamplerSettings,
    tile: TileSettings,
    coder_tile: Callable[[Tensor], TileSettings],
    at_once: int,
    **how: Any,
) -> Tensor:
    """Sample images of one size, see :func:`dit4sr.restoration.restoring.sample`.

    Args:
        network, conditions, settings, tile: see there.
        coder: encodes the images.
        plan: of the images.
        noise: the starting noise, (B, C, *plan.latent_size); None draws it.
        generators: one an image; None is torch's own.
        coder_tile: latent → side and overlap of the autoencoder's tiles.
        at_once: images that are encoded together.
        how: further arguments there.

    Raises:
        UserError: for noise of another shape, or settings that cannot be sampled with.
    """
    lq = plan.upsampled.lq
    shape = (len(lq), coder.channels, *plan.latent_size)
    if noise is not None and tuple(noise.shape) != shape:
        raise UserError(f"latents of shape {tuple(noise.shape)}: these images need {shape}")
    # The posterior is sampled, as in training; but noise that is given stands for all of it.
    sampled = coder.has_posterior and (noise is None or generators is not None)
    if generators is None:
        generators = [torch.default_generator] * len(lq)
    noise = noise_of(generators, shape[1:], lq.device) if noise is None else noise.to(lq.device, torch.float32)
    of_posterior = noise_of(generators, shape[1:], lq.device) if sampled else None
    lr_latent = encode_lr(plan, coder, coder_tile(noise), at_once, of_posterior)
    del of_posterior
    return sample(network, lr_latent, noise, conditions, settings, tile, **how)

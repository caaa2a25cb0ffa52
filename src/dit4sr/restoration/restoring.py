"""Restoring a batch of images, whoever asks: upsample, encode, sample tile by tile; then decoding.py has the latent.

The pipeline and the verbs' restorer are two doors to this. What grows with the image is its latents, each once or
twice, and the result; all else is as large as a tile, or a row of them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from dit4sr.autoencoder_tiling import encode_tiled
from dit4sr.autoencoders import Autoencoder
from dit4sr.errors import UserError
from dit4sr.prompts import TextEmbedding
from dit4sr.restoration.sampler_settings import SamplerSettings
from dit4sr.restoration.upsampling import Upsampled
from dit4sr.sampling import (
    Callback,
    Network,
    TiledNetwork,
    sample_euler,
    sample_with_scheduler,
)
from dit4sr.tiles import TileSettings


def target_size(height: int, width: int, upscale: float) -> tuple[int, int]:
    """Sides of the restored image, rounded to whole pixels.

    Raises:
        UserError: for a factor below 1.
    """
    if not 1 <= upscale < math.inf:
        raise UserError(f"upscale={upscale}: the factor is at least 1")
    return round(height * upscale), round(width * upscale)


def pad_to(size: int, multiple: int) -> int:
    """The least multiple of ``multiple`` that is at least ``size``."""
    return math.ceil(size / multiple) * multiple


@dataclass(frozen=True, eq=False)
class Plan:
    """What an image's size decides: how far it is padded, and the latent's shape.

    Args:
        upsampled: the input images, (B, 3, h, w), with the target's size.
        scale: pixels per latent pixel.
        multiple: latent pixels of which the latent's sides are multiples: a token's side.
        least: latent pixels that the sides have at least: what the network was trained on.
    """

    upsampled: Upsampled
    scale: int
    multiple: int
    least: int

    @property
    def latent_size(self) -> tuple[int, int]:
        """Height and width of the latent: whole tokens, and at least the size that the network has seen."""
        sides = (self.upsampled.height, self.upsampled.width)
        return tuple(pad_to(max(math.ceil(side / self.scale), self.least), self.multiple) for side in sides)  # type: ignore[return-value]


def noise_of(generators: Sequence[torch.Generator], shape: tuple[int, ...], device: torch.device) -> Tensor:
    """Standard normal draws, (B, *shape) float32: image n's from generator n alone, on that generator's device."""
    noise = torch.empty(len(generators), *shape, device=device)
    for row, generator in zip(noise, generators, strict=True):
        row.copy_(torch.randn(shape, generator=generator, device=generator.device))
    return noise


@dataclass(frozen=True, eq=False)
class Conditions:
    """What sampling is conditioned on beside the LR latent; ``negative`` is None without guidance."""

    text: TextEmbedding
    negative: TextEmbedding | None

    def of(self, images: Tensor) -> Conditions:
        """Those of some images, by their numbers, (n,); a number may come more than once."""
        some = [part and TextEmbedding(part.tokens[images], part.pooled[images]) for part in (self.text, self.negative)]
        assert some[0] is not None
        return Conditions(some[0], some[1])


def encode_lr(
    plan: Plan, autoencoder: Autoencoder, tile: TileSettings, at_once: int, posterior_noise: Tensor | None
) -> Tensor:
    """The LR latent, (B, C, *plan.latent_size) float32: of the input upsampled and padded by reflection.

    Args:
        plan: see :class:`Plan`.
        autoencoder: see :class:`dit4sr.autoencoders.Autoencoder`.
        tile: side and overlap in latent pixels.
        at_once: images of one forward pass.
        posterior_noise: to sample the posterior with, in the latent's shape; None takes its mode.
    """
    height, width = (side * plan.scale for side in plan.latent_size)
    lq, latents = plan.upsampled.lq, []
    for first in range(0, len(lq), at_once):
        some = slice(first, first + at_once)
        upsampled = Upsampled(lq[some], plan.upsampled.height, plan.upsampled.width)
        noise = None if posterior_noise is None else posterior_noise[some]
        latents.append(encode_tiled(autoencoder, upsampled.part, height, width, tile, noise))
    return latents[0] if len(latents) == 1 else torch.cat(latents)


def sample(
    network: Network,
    lr_latent: Tensor,
    noise: Tensor,
    conditions: Conditions,
    settings: SamplerSettings,
    tile: TileSettings,
    *,
    scheduler: Any = None,
    callback: Callback | None = None,
    interrupted: Callable[[], bool] | None = None,
) -> Tensor:
    """Sample the restored latent, tile by tile at every step.

    Args:
        network: see :data:`dit4sr.sampling.Network`.
        lr_latent, noise: (B, C, h, w) float32.
        conditions: the prompts.
        settings: how to sample.
        tile: side and overlap in latent pixels.
        scheduler: one of diffusers' in place of Euler's method on ``settings.shift``.
        callback, interrupted: see :func:`dit4sr.sampling.sample_euler`.

    Raises:
        UserError: for settings that cannot be sampled with.
    """
    tiled = TiledNetwork(network, tile.size, tile.overlap, settings.tile_batch)
    negative = conditions.negative
    arguments: dict[str, Any] = {
        "encoder_hidden_states": conditions.text.tokens,
        "pooled_projections": conditions.text.pooled,
        "negative_encoder_hidden_states": None if negative is None else negative.tokens,
        "negative_pooled_projections": None if negative is None else negative.pooled,
        "steps": settings.steps,
        "guidance": settings.guidance,
        "guidance_interval": settings.guidance_interval,
        "noise": noise,
        "callback": callback,
        "interrupted": interrupted,
    }
    del noise
    try:
        if scheduler is not None:
            if settings.start != "noise":
                raise UserError(f"start={settings.start} needs FlowMatchEulerDiscreteScheduler: use it, or start=noise")
            return sample_with_scheduler(tiled, lr_latent, scheduler, **arguments)
        return sample_euler(
            tiled,
            lr_latent,
            shift=settings.shift,
            start=settings.start,
            first_sigma=settings.first_sigma,
            **arguments,
        )
    except ValueError as error:
        raise error if isinstance(error, UserError) else UserError(str(error)) from error

"""Restoring a batch of images, whoever asks: upsample, encode, sample tile by tile; then decoding.py has the latent.

The pipeline and the verbs' restorer are two doors to this. What grows with the image is its latents, each once or
twice, and the result; all else is as large as a tile, or a row of them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal, Self

import torch
from torch import Tensor

from dit4sr.autoencoder_tiling import encode_tiled
from dit4sr.autoencoders import Autoencoder
from dit4sr.errors import UserError
from dit4sr.prompts import TextEmbedding
from dit4sr.restoration.colour import ALIGN
from dit4sr.restoration.upsampling import Upsampled
from dit4sr.sampling import (
    Callback,
    Network,
    TiledNetwork,
    sample_euler,
    sample_with_scheduler,
    sampling_sigmas,
)
from dit4sr.tiles import TileSettings
from dit4sr.values import number, whole_number


@dataclass(frozen=True)
class SamplerSettings:
    """configs/sampler: how a latent is sampled. See :func:`dit4sr.sampling.sample_euler`."""

    steps: int
    shift: float
    guidance: float
    start: Literal["noise", "lr"]
    first_sigma: float
    negative_prompt: str
    positive_suffix: str
    tile_batch: int
    colour: str
    guidance_interval: tuple[float, float] | None = None

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Self:
        """Build the settings from a config group.

        Raises:
            UserError: for missing or unknown fields, or a value that cannot be sampled with.
        """
        expected = {f.name for f in fields(cls)}
        given = {"guidance_interval": None, **config}  # samplers saved before there was one have none
        if wrong := sorted(expected ^ set(given)):
            raise UserError(
                f"sampler: missing or unknown {', '.join(map(str, wrong))}; it has {', '.join(sorted(expected))}"
            )
        if isinstance(given["guidance_interval"], list):
            given["guidance_interval"] = tuple(given["guidance_interval"])
        settings = cls(**{str(k): v for k, v in given.items()})
        settings.check()
        return settings

    def check(self) -> None:
        """Refuse what cannot be sampled with, before anything is computed.

        Raises:
            UserError: naming the field.
        """
        stated = {f"sampler.{f.name}": getattr(self, f.name) for f in fields(self)}
        for name in ("sampler.steps", "sampler.tile_batch"):
            whole_number(stated, name)
        for name in ("sampler.shift", "sampler.guidance", "sampler.first_sigma"):
            number(stated, name)
        if self.colour not in ALIGN:
            raise UserError(f"sampler.colour={self.colour!r}: choose one of {', '.join(ALIGN)}")
        if self.steps < 1:
            raise UserError(f"sampler.steps={self.steps}: at least one step is needed")
        if self.tile_batch < 1:
            raise UserError(f"sampler.tile_batch={self.tile_batch}: at least one tile is needed")
        if self.shift <= 0:
            raise UserError(f"sampler.shift={self.shift}: it is larger than 0 (1 is no shift)")
        if self.start not in ("noise", "lr"):
            raise UserError(f"sampler.start={self.start!r}: choose noise or lr")
        if not 0 < self.first_sigma <= 1:
            raise UserError(f"sampler.first_sigma={self.first_sigma}: it lies above 0 and is at most 1")
        if self.start == "noise" and self.first_sigma != 1:
            raise UserError(
                f"sampler.first_sigma={self.first_sigma}: starting from noise it is 1; for less use sampler.start=lr"
            )
        if self.guidance_interval is not None:
            check_interval(self.guidance_interval)
        try:
            sampling_sigmas(self.steps, self.shift, self.first_sigma)
        except ValueError as error:
            raise UserError(f"sampler.{error}") from error

    def positive(self, prompt: str) -> str:
        """The prompt with the quality suffix."""
        return ", ".join(part for part in (prompt.strip().rstrip("."), self.positive_suffix) if part)


def check_interval(interval: object) -> None:
    """Refuse an interval of guidance that is none.

    Raises:
        UserError: unless it is two σ, the lower one first.
    """
    ends = interval if isinstance(interval, tuple | list) else ()
    numbers = all(isinstance(end, int | float) and not isinstance(end, bool) for end in ends)
    if len(ends) != 2 or not numbers or not 0 <= ends[0] <= ends[1] <= 1:
        raise UserError(
            f"sampler.guidance_interval={interval}: give the lowest and the highest sigma of the guided steps, within "
            "0 and 1, such as [0.2,0.9], or null"
        )


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

"""Restoring images: upsample, encode, sample tile by tile, decode, align colours."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Literal, Self, overload

import numpy as np
import torch
from torch.nn import functional as F

from dit4sr.autoencoders import Autoencoder, build_autoencoder
from dit4sr.errors import UserError
from dit4sr.images import from_hwc, to_hwc, upsample_bicubic
from dit4sr.models.checkpoint import TrainedModel
from dit4sr.prompts import TextEncoder, build_text_encoder
from dit4sr.restoration.colour import ALIGN
from dit4sr.sampling import Network, TiledNetwork, sample_euler


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

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Self:
        """Build the settings from a config group.

        Raises:
            UserError: for missing or unknown fields, or an unknown colour alignment.
        """
        expected = {f.name for f in fields(cls)}
        if wrong := sorted(expected ^ set(config)):
            raise UserError(
                f"sampler: missing or unknown {', '.join(map(str, wrong))}; it has {', '.join(sorted(expected))}"
            )
        if config["colour"] not in ALIGN:
            raise UserError(f"sampler.colour={config['colour']!r}: choose one of {', '.join(ALIGN)}")
        if config["steps"] < 1:
            raise UserError(f"sampler.steps={config['steps']}: at least one step is needed")
        return cls(**{str(k): v for k, v in config.items()})


@dataclass(frozen=True)
class TileSettings:
    """Latent tiles: a side and an overlap, in latent pixels."""

    size: int
    overlap: int


def pad_to(size: int, multiple: int) -> int:
    """The least multiple of ``multiple`` that is at least ``size``."""
    return math.ceil(size / multiple) * multiple


@dataclass(frozen=True)
class Restorer:
    """A trained network and what it needs to restore images.

    Args:
        network: a velocity network in evaluation mode, see :data:`dit4sr.sampling.Network`.
        autoencoder: see :class:`dit4sr.autoencoders.Autoencoder`.
        text_encoder: see :class:`dit4sr.prompts.TextEncoder`.
        sampler: how to sample.
        tile: tiles of this size are what the network was trained on.
        device: where to compute.
        patch: latent pixels of a token's side.
    """

    network: Network
    autoencoder: Autoencoder
    text_encoder: TextEncoder
    sampler: SamplerSettings
    tile: TileSettings
    device: torch.device
    patch: int = 2

    @classmethod
    def from_trained(cls, trained: TrainedModel, sampler: Mapping[str, Any], device: torch.device) -> Self:
        """Put a checkpoint's network, autoencoder and text encoder together."""
        backbone = trained.config["backbone"]
        autoencoder = build_autoencoder(backbone["autoencoder"], backbone["pretrained"])
        if isinstance(autoencoder, torch.nn.Module):
            autoencoder.to(device)
        text_encoder = build_text_encoder(backbone["text_encoder"], backbone["pretrained"])
        if hasattr(text_encoder, "to"):
            text_encoder.to(device)
        return cls(
            network=trained.network.to(device),
            autoencoder=autoencoder,
            text_encoder=text_encoder,
            sampler=SamplerSettings.from_config(sampler),
            tile=TileSettings(**backbone["tile"]),
            device=device,
            patch=backbone["transformer"]["patch_size"],
        )

    def restore(self, lq: np.ndarray, prompt: str, *, seed: int, upscale: float = 4.0) -> np.ndarray:
        """Restore one image; see :meth:`restore_batch`."""
        return self.restore_batch([lq], [prompt], [seed], upscale)[0]

    @overload
    def restore_batch(
        self, lqs: list[np.ndarray], prompts: list[str], seeds: list[int], upscale: float = ...
    ) -> list[np.ndarray]: ...

    @overload
    def restore_batch(
        self,
        lqs: list[np.ndarray],
        prompts: list[str],
        seeds: list[int],
        upscale: float = ...,
        *,
        as_float: bool,
    ) -> list[np.ndarray]: ...

    @torch.inference_mode()
    def restore_batch(
        self,
        lqs: list[np.ndarray],
        prompts: list[str],
        seeds: list[int],
        upscale: float = 4.0,
        *,
        as_float: bool = False,
    ) -> list[np.ndarray]:
        """Restore images of one size; each has its own noise, from its seed alone.

        Args:
            lqs: uint8 (h, w, 3), RGB.
            prompts: one an image; the empty string is the null prompt.
            seeds: one an image.
            upscale: factor of the result's sides, at least 1; they are rounded to whole pixels.
            as_float: give (H, W, 3) float32 in [0, 1], unrounded, in place of uint8.

        Raises:
            UserError: for images of different sizes, or an upscale below 1.
        """
        if len({lq.shape for lq in lqs}) != 1:
            raise UserError("the images of one batch must have one size")
        if upscale < 1:
            raise UserError(f"upscale={upscale}: the factor is at least 1")
        height, width = round(lqs[0].shape[0] * upscale), round(lqs[0].shape[1] * upscale)
        lq = torch.cat([from_hwc(image) for image in lqs]).to(self.device)
        upsampled = upsample_bicubic(lq, height, width)

        # Whole tokens, and at least one tile, which is the only size that the network has seen.
        multiple = self.autoencoder.scale * self.patch
        least = self.tile.size * self.autoencoder.scale
        padded_height, padded_width = (pad_to(max(side, least), multiple) for side in (height, width))
        padded = pad_reflecting(upsampled, padded_height, padded_width)
        lr_latent = self.autoencoder.encode(padded)

        positive = self.text_encoder.encode([self.positive(p) for p in prompts]).to(self.device, lr_latent.dtype)
        negative = self.text_encoder.encode([self.sampler.negative_prompt] * len(lqs)).to(self.device, lr_latent.dtype)
        noise = torch.stack(
            [torch.randn(lr_latent.shape[1:], generator=torch.Generator().manual_seed(seed)) for seed in seeds]
        )
        latent = sample_euler(
            TiledNetwork(self.network, self.tile.size, self.tile.overlap, self.sampler.tile_batch),
            lr_latent,
            encoder_hidden_states=positive.tokens,
            pooled_projections=positive.pooled,
            negative_encoder_hidden_states=negative.tokens,
            negative_pooled_projections=negative.pooled,
            steps=self.sampler.steps,
            shift=self.sampler.shift,
            guidance=self.sampler.guidance,
            noise=noise.to(self.device),
            start=self.sampler.start,
            first_sigma=self.sampler.first_sigma,
        )
        restored = self.autoencoder.decode(latent)[..., :height, :width]
        restored = ALIGN[self.sampler.colour](restored, upsampled).clamp(0, 1)
        if as_float:
            return [image.permute(1, 2, 0).float().cpu().numpy() for image in restored]
        return [to_hwc(image) for image in restored]

    def positive(self, prompt: str) -> str:
        """The prompt with the quality suffix."""
        return ", ".join(part for part in (prompt.strip().rstrip("."), self.sampler.positive_suffix) if part)


def pad_reflecting(image: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """Extend (B, C, h, w) to the right and below by reflection, as often as it takes."""
    while image.shape[-2] < height or image.shape[-1] < width:
        down = min(height - image.shape[-2], image.shape[-2] - 1)
        right = min(width - image.shape[-1], image.shape[-1] - 1)
        image = F.pad(image, (0, right, 0, down), mode="reflect")
    return image

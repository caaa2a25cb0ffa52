"""A trained network with all that it needs to restore images, as the verbs, validation and evaluation use it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Self, overload

import numpy as np
import torch

from dit4sr.autoencoders import Autoencoder, build_autoencoder
from dit4sr.errors import UserError
from dit4sr.models.checkpoint import TrainedModel
from dit4sr.prompts import PromptSettings, TextEncoder, build_text_encoder
from dit4sr.prompts.ahead import placed
from dit4sr.restoration.decoding import decode_restored, whole_arrays
from dit4sr.restoration.restoring import (
    Conditions,
    Plan,
    encode_lr,
    noise_of,
    sample,
    target_size,
)
from dit4sr.restoration.sampler_settings import SamplerSettings
from dit4sr.restoration.upsampling import Upsampled
from dit4sr.sampling import Callback, Network
from dit4sr.tiles import TileSettings, check_tile

__all__ = ["Restorer", "TileSettings"]


@dataclass(frozen=True)
class Restorer:
    """A trained network and what it needs to restore images.

    Args:
        network: a velocity network in evaluation mode, see :data:`dit4sr.sampling.Network`.
        autoencoder: see :class:`dit4sr.autoencoders.Autoencoder`.
        text_encoder: see :class:`dit4sr.prompts.TextEncoder`.
        sampler: how to sample.
        tile: tiles in which latents are sampled, and images encoded and decoded.
        device: where to compute.
        patch: latent pixels of a token's side.
        least: latent pixels of the sides that the network was trained on: smaller images are padded to them.
            None for the tile's.
        acceleration: what was done to make it faster, as configs/acceleration says; it travels with the results.

    Raises:
        UserError: for tiles that the network cannot take.
    """

    network: Network
    autoencoder: Autoencoder
    text_encoder: TextEncoder
    sampler: SamplerSettings
    tile: TileSettings
    device: torch.device
    patch: int = 2
    least: int | None = None
    acceleration: Mapping[str, Any] | None = None

    def __post_init__(self) -> None:
        check_tile(self.tile, self.patch, largest_side(self.network))

    @classmethod
    def from_trained(
        cls,
        trained: TrainedModel,
        sampler: Mapping[str, Any],
        device: torch.device,
        prompt: PromptSettings | None = None,
        text_encoder_device: str = "auto",
        prompts: Iterable[str] = (),
    ) -> Self:
        """Put a checkpoint's network, autoencoder and text encoder together.

        Args:
            trained: the network, on the CPU.
            sampler: configs/sampler.
            device: where to restore.
            prompt: how prompts are encoded.
            text_encoder_device: where; see :data:`dit4sr.prompts.settings.TEXT_DEVICES`.
            prompts: what will be asked for, without the sampler's suffix, as far as it is known.
        """
        settings = SamplerSettings.from_config(sampler)
        backbone = trained.config["backbone"]
        local = bool(backbone.get("local_files_only"))
        text_encoder = build_text_encoder(
            backbone["text_encoder"], backbone["pretrained"], prompt, local_files_only=local
        )
        # Text first: where memory is short, its encoders have left the device before the others come.
        texts = [settings.negative_prompt, *map(settings.positive, prompts)]
        network_bytes = sum(tensor.nbytes for tensor in trained.network.state_dict().values())
        text_encoder = placed(text_encoder, text_encoder_device, device, texts, network_bytes)
        autoencoder = build_autoencoder(backbone["autoencoder"], backbone["pretrained"], local_files_only=local)
        if isinstance(autoencoder, torch.nn.Module):
            autoencoder.to(device)
        tile = TileSettings(**backbone["tile"])
        return cls(
            network=trained.network.to(device),
            autoencoder=autoencoder,
            text_encoder=text_encoder,
            sampler=settings,
            tile=tile,
            device=device,
            patch=trained.network.config.patch_size,
            least=tile.size,
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
        as_float: bool = ...,
        callback: Callback | None = ...,
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
        callback: Callback | None = None,
    ) -> list[np.ndarray]:
        """Restore images of one size; each has its own noise, from its seed alone.

        Args:
            lqs: uint8 (h, w, 3), RGB.
            prompts: one an image; the empty string is the null prompt.
            seeds: one an image.
            upscale: factor of the result's sides, at least 1; they are rounded to whole pixels.
            as_float: give (H, W, 3) float32 in [0, 1], unrounded, in place of uint8.
            callback: called after each step, see :data:`dit4sr.sampling.Callback`.

        Raises:
            UserError: for images of different sizes, or an upscale below 1.
        """
        if len({lq.shape for lq in lqs}) != 1:
            raise UserError("the images of one batch must have one size")
        height, width = lqs[0].shape[:2]
        size = target_size(height, width, upscale)
        lq = torch.from_numpy(np.stack(lqs)).permute(0, 3, 1, 2).to(self.device)
        plan = Plan(Upsampled(lq, *size), self.autoencoder.scale, self.patch, self.least or self.tile.size)
        conditions = Conditions(
            self.encode([self.sampler.positive(p) for p in prompts]),
            None if self.sampler.guidance == 1 else self.encode([self.sampler.negative_prompt] * len(lqs)),
        )
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        shape, at_once = (self.autoencoder.channels, *plan.latent_size), self.sampler.tile_batch
        noise = noise_of(generators, shape, self.device)
        of_posterior = noise_of(generators, shape, self.device) if self.autoencoder.has_posterior else None
        lr_latent = encode_lr(plan, self.autoencoder, self.tile, at_once, of_posterior)
        del of_posterior
        latent = sample(self.network, lr_latent, noise, conditions, self.sampler, self.tile, callback=callback)
        del lr_latent, noise
        strips = decode_restored(plan, self.autoencoder, latent, self.tile, at_once, self.sampler.colour)
        return whole_arrays(strips, plan, as_float=as_float)

    def encode(self, prompts: list[str]) -> Any:
        """The prompts' embeddings, float32, where the network is."""
        return self.text_encoder.encode(prompts).to(self.device, torch.float32)

    def positive(self, prompt: str) -> str:
        """The prompt with the quality suffix."""
        return self.sampler.positive(prompt)


def largest_side(network: Any) -> int | None:
    """Latent pixels that a network's positional table reaches; None where it has none."""
    config = getattr(network, "config", None)
    return None if config is None else config.pos_embed_max_size * config.patch_size

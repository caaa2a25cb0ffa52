"""One restoration with the states that it passes through."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from dit4sr.flow import interpolate
from dit4sr.restoration.restoring import Plan, encode_lr, noise_of
from dit4sr.restoration.upsampling import Upsampled
from dit4sr.sampling import sampling_sigmas

if TYPE_CHECKING:
    from dit4sr.restoration.restorer import Restorer


@dataclass(frozen=True, eq=False)
class Trajectory:
    """A restoration, and what the network was asked at each step.

    Attributes:
        restored: uint8 (H, W, 3).
        lr_latent: (1, C, h, w).
        states: z before each step, (1, C, h, w), on the CPU.
        sigmas: of each step.
        tokens, pooled: the prompt's embedding.
    """

    restored: np.ndarray
    lr_latent: Tensor
    states: list[Tensor]
    sigmas: list[float]
    tokens: Tensor
    pooled: Tensor


@torch.inference_mode()
def follow(restorer: Restorer, lq: np.ndarray, prompt: str, *, seed: int, upscale: float) -> Trajectory:
    """Restore an image as the restorer does, and keep every step's state.

    Args:
        restorer: of the checkpoint.
        lq: uint8 (h, w, 3).
        prompt: "" is the null prompt.
        seed: of the noise.
        upscale: factor of the sides.
    """
    sampler, autoencoder = restorer.sampler, restorer.autoencoder
    states: list[Tensor] = []

    def keep(step: int, z: Tensor) -> None:
        states.append(z.float().cpu())

    restored = restorer.restore_batch([lq], [prompt], [seed], upscale, callback=keep)[0]

    # The restorer's own first state: the same draws in the same order.
    pixels = torch.from_numpy(lq)[None].permute(0, 3, 1, 2).to(restorer.device)
    upsampled = Upsampled(pixels, *restored.shape[:2])
    plan = Plan(upsampled, autoencoder.scale, restorer.patch, restorer.least or restorer.tile.size)
    shape = (autoencoder.channels, *plan.latent_size)
    generators = [torch.Generator().manual_seed(seed)]
    noise = noise_of(generators, shape, restorer.device)
    of_posterior = noise_of(generators, shape, restorer.device) if autoencoder.has_posterior else None
    lr_latent = encode_lr(plan, autoencoder, restorer.tile, sampler.tile_batch, of_posterior)
    sigmas = sampling_sigmas(sampler.steps, sampler.shift, sampler.first_sigma)
    first = noise.to(lr_latent) if sampler.start == "noise" else interpolate(lr_latent, noise, sigmas[:1])
    text = restorer.encode([restorer.positive(prompt)])
    return Trajectory(
        restored, lr_latent, [first.float().cpu(), *states[:-1]], sigmas[:-1].tolist(), text.tokens, text.pooled
    )

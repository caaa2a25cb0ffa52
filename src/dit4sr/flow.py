"""Flow matching as plain functions (rectified flow: arXiv 2209.03003; in SD3: arXiv 2403.03206).

Direction: σ=0 is data, σ=1 is noise. z_t = (1−σ) z + σ ε, and the velocity is v = ε − z.
Latents are (B, C, H, W); σ is (B,) and lies in [0, 1].
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

Reduction = Literal["mean", "none"]


def expand(sigma: Tensor, like: Tensor) -> Tensor:
    """(B,) → (B, 1, 1, 1) in the type of ``like``; a 0-dimensional σ serves the whole batch."""
    return sigma.to(like).reshape(-1, *[1] * (like.ndim - 1))


def shift_sigma(u: Tensor, shift: float) -> Tensor:
    """σ = s·u / (1 + (s−1)·u), SD3's resolution-dependent shift (arXiv 2403.03206, equation 23).

    Args:
        u: unshifted time in [0, 1], any shape.
        shift: s > 0; 3 for SD3.5 at its native resolution, 1 for none.
    """
    return shift * u / (1 + (shift - 1) * u)


def logit_normal(normal: Tensor, mean: float = 0.0, std: float = 1.0) -> Tensor:
    """Map standard normal draws to u ~ logit-normal(mean, std) in (0, 1) (arXiv 2403.03206, section 3.1)."""
    return torch.sigmoid(mean + std * normal)


def interpolate(z: Tensor, eps: Tensor, sigma: Tensor) -> Tensor:
    """z_t = (1−σ) z + σ ε."""
    sigma = expand(sigma, z)
    return (1 - sigma) * z + sigma * eps


def velocity_loss(velocity: Tensor, z: Tensor, eps: Tensor, *, reduction: Reduction = "mean") -> Tensor:
    """‖v̂ − (ε − z)‖², the mean over C, H and W, and over B unless ``reduction="none"``.

    Args:
        velocity: v̂, the network's prediction at z_t.
        z: clean latent.
        eps: the noise that z_t was made with.

    Returns:
        A scalar, or (B,).
    """
    per_sample = (velocity.float() - (eps - z).float()).square().flatten(1).mean(1)
    return per_sample.mean() if reduction == "mean" else per_sample


def latent_loss(velocity: Tensor, z: Tensor, eps: Tensor, sigma: Tensor, *, reduction: Reduction = "mean") -> Tensor:
    """‖z_t − σ v̂ − z‖², the loss on the reconstructed clean latent; equals σ²·``velocity_loss``.

    Args:
        velocity: v̂, the network's prediction at z_t.
        z: clean latent.
        eps: the noise that z_t was made with.
        sigma: (B,).

    Returns:
        A scalar, or (B,).
    """
    z_t = interpolate(z.float(), eps.float(), sigma)
    reconstructed = z_t - expand(sigma, z_t) * velocity.float()
    per_sample = (reconstructed - z.float()).square().flatten(1).mean(1)
    return per_sample.mean() if reduction == "mean" else per_sample

"""Sampling: the σ schedule, classifier-free guidance, Euler's method, and latent tiles."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from dit4sr.flow import interpolate, shift_sigma

Network = Callable[..., Any]
"""``network(z_t, lr_latent, timestep, tokens, pooled, return_dict=False)`` → velocity (B, C, H, W)."""

TRAIN_TIMESTEPS = 1000
"""The timestep argument of the networks is this many times σ."""


def sampling_sigmas(steps: int, shift: float = 3.0, first_sigma: float = 1.0) -> Tensor:
    """The σ of each step, then 0: (steps + 1,), float64.

    As diffusers' ``FlowMatchEulerDiscreteScheduler`` has it: its table of 1000 times is shifted,
    ``steps`` values are spaced evenly from the table's first to its last, and these are shifted
    once more. So the last non-zero σ is 0.0089 at shift 3, not 0.0030.

    Args:
        steps: number of Euler steps, at least 1.
        shift: s of :func:`dit4sr.flow.shift_sigma`.
        first_sigma: start below 1 to sample from a partly noised latent.

    Raises:
        ValueError: for no steps, or a first σ outside (0, 1] or below the last one.
    """
    if steps < 1:
        raise ValueError(f"steps={steps}: at least one Euler step is needed")
    if not 0 < first_sigma <= 1:
        raise ValueError(f"first_sigma={first_sigma}: it lies in (0, 1]")
    first = torch.tensor(first_sigma, dtype=torch.float64)
    unshifted_first = first / (shift - (shift - 1) * first)
    last = shift_sigma(torch.tensor(1 / TRAIN_TIMESTEPS, dtype=torch.float64), shift)
    if steps > 1 and unshifted_first <= last:
        raise ValueError(f"first_sigma={first_sigma}: it must exceed the last, {float(shift_sigma(last, shift)):.4f}")
    u = torch.linspace(float(unshifted_first), float(last), steps, dtype=torch.float64)
    return torch.cat([shift_sigma(u, shift), torch.zeros(1, dtype=torch.float64)])


def guided_velocity(
    network: Network,
    z: Tensor,
    lr_latent: Tensor | None,
    timestep: Tensor,
    tokens: Tensor,
    pooled: Tensor,
    negative_tokens: Tensor | None,
    negative_pooled: Tensor | None,
    guidance: float,
) -> Tensor:
    """v⁻ + w (v⁺ − v⁻), both predictions in one batched forward (arXiv 2207.12598).

    At ``guidance`` 1 the negative prompt has no weight and is not computed.
    """
    if guidance == 1 or negative_tokens is None or negative_pooled is None:
        return network(z, lr_latent, timestep, tokens, pooled, return_dict=False)

    def twice(x: Tensor | None) -> Tensor | None:
        return None if x is None else torch.cat([x, x])

    both = network(
        twice(z),
        twice(lr_latent),
        twice(timestep),
        torch.cat([negative_tokens, tokens]),
        torch.cat([negative_pooled, pooled]),
        return_dict=False,
    )
    negative, positive = both.chunk(2)
    return negative + guidance * (positive - negative)


@torch.no_grad()
def sample_euler(
    network: Network,
    lr_latent: Tensor,
    *,
    encoder_hidden_states: Tensor,
    pooled_projections: Tensor,
    negative_encoder_hidden_states: Tensor | None = None,
    negative_pooled_projections: Tensor | None = None,
    steps: int = 40,
    shift: float = 3.0,
    guidance: float = 8.0,
    noise: Tensor | None = None,
    generator: torch.Generator | None = None,
    start: Literal["noise", "lr"] = "noise",
    first_sigma: float = 1.0,
    callback: Callable[[int, Tensor], None] | None = None,
) -> Tensor:
    """Sample a clean latent given the LR latent, by Euler's method on dz/dσ = v.

    Args:
        network: see :data:`Network`; wrap it by :class:`TiledNetwork` for large latents.
        lr_latent: (B, C, H, W); gives the shape, the device and the type.
        encoder_hidden_states, pooled_projections: the prompt, (B, M, W) and (B, P).
        negative_encoder_hidden_states, negative_pooled_projections: the negative prompt; without
            it there is no guidance.
        steps: number of Euler steps.
        shift: of the schedule, see :func:`sampling_sigmas`.
        guidance: w of classifier-free guidance; 1 switches it off.
        noise: the starting noise, (B, C, H, W); drawn from ``generator`` if not given.
        start: ``noise``, or ``lr``: the LR latent noised to ``first_sigma``. (At a first σ of 1
            the two are the same: nothing is left of the LR latent.)
        first_sigma: the first σ; 1 when starting from noise.
        callback: called after each step with its number and the latent.

    Returns:
        The sampled latent, (B, C, H, W).

    Raises:
        ValueError: for an unknown start, or a first σ below 1 when starting from noise.
    """
    if start not in ("noise", "lr"):
        raise ValueError(f"start={start!r}: choose noise or lr")
    if start == "noise" and first_sigma != 1:
        raise ValueError("starting from noise, the first sigma is 1; use start=lr for a lower one")
    if noise is None:
        device = generator.device if generator is not None else lr_latent.device
        noise = torch.randn(lr_latent.shape, generator=generator, device=device, dtype=torch.float32)
    noise = noise.to(lr_latent)
    sigmas = sampling_sigmas(steps, shift, first_sigma)
    z = noise if start == "noise" else interpolate(lr_latent, noise, sigmas[:1])
    for i in range(steps):
        timestep = torch.full((z.shape[0],), float(sigmas[i]) * TRAIN_TIMESTEPS, device=z.device, dtype=torch.float32)
        velocity = guided_velocity(
            network,
            z,
            lr_latent,
            timestep,
            encoder_hidden_states,
            pooled_projections,
            negative_encoder_hidden_states,
            negative_pooled_projections,
            guidance,
        )
        z = z + float(sigmas[i + 1] - sigmas[i]) * velocity
        if callback is not None:
            callback(i, z)
    return z


def tile_starts(length: int, tile: int, overlap: int) -> list[int]:
    """First positions of the tiles that cover ``length``, the last one flush with the end.

    Raises:
        ValueError: unless 0 ≤ overlap < tile.
    """
    if not 0 <= overlap < tile:
        raise ValueError(f"tile={tile}, overlap={overlap}: the overlap must be smaller than the tile")
    if length <= tile:
        return [0]
    return [*range(0, length - tile, tile - overlap), length - tile]


def gaussian_window(height: int, width: int, *, device: Any = None) -> Tensor:
    """Blending weights of a tile, (height, width), positive, highest in the centre.

    A Gaussian of variance 0.01 in units of the side, as in tiled diffusion (arXiv 2302.02412).
    """

    def axis(n: int) -> Tensor:
        x = (torch.arange(n, dtype=torch.float32, device=device) - (n - 1) / 2) / n
        return torch.exp(-x.square() / (2 * 0.01))

    return torch.outer(axis(height), axis(width))


@dataclass(frozen=True)
class TiledNetwork:
    """A network evaluated on overlapping latent tiles, blended by Gaussian weights at every step.

    Where the latent fits one tile this is the network itself.

    Args:
        network: see :data:`Network`.
        tile: side of a tile in latent pixels, a multiple of the patch.
        overlap: of neighbouring tiles, in latent pixels.
        batch: number of tiles of one forward pass; bounds the memory.
    """

    network: Network
    tile: int
    overlap: int
    batch: int = 16

    def __call__(
        self,
        z: Tensor,
        lr_latent: Tensor | None,
        timestep: Tensor,
        tokens: Tensor,
        pooled: Tensor,
        return_dict: bool = False,
    ) -> Tensor:
        """Velocity of the whole latent, (B, C, H, W); arguments as for the network."""
        B, _, H, W = z.shape
        rows, columns = tile_starts(H, self.tile, self.overlap), tile_starts(W, self.tile, self.overlap)
        if len(rows) == len(columns) == 1:
            return self.network(z, lr_latent, timestep, tokens, pooled, return_dict=False)
        h, w = min(H, self.tile), min(W, self.tile)
        window = gaussian_window(h, w, device=z.device)
        places = [(b, y, x) for y in rows for x in columns for b in range(B)]
        total = torch.zeros(z.shape, dtype=torch.float32, device=z.device)
        weight = torch.zeros((1, 1, H, W), device=z.device)
        for y in rows:
            for x in columns:
                weight[..., y : y + h, x : x + w] += window
        for first in range(0, len(places), self.batch):
            chunk = places[first : first + self.batch]
            index = torch.tensor([b for b, _, _ in chunk], device=z.device)

            def cut(latent: Tensor, chunk: list[tuple[int, int, int]] = chunk) -> Tensor:
                return torch.stack([latent[b, :, y : y + h, x : x + w] for b, y, x in chunk])

            velocity = self.network(
                cut(z),
                None if lr_latent is None else cut(lr_latent),
                timestep[index],
                tokens[index],
                pooled[index],
                return_dict=False,
            )
            for (b, y, x), v in zip(chunk, velocity, strict=True):
                total[b, :, y : y + h, x : x + w] += window * v
        return (total / weight).to(z.dtype)

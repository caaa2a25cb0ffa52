"""Sampling: the σ schedule, classifier-free guidance and Euler's method."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor

from dit4sr.errors import UserError
from dit4sr.flow import interpolate, shift_sigma
from dit4sr.stepping import Stepping, is_guided
from dit4sr.tiled_network import Network, TiledNetwork
from dit4sr.tiles import gaussian_window, tile_starts

__all__ = [
    "TRAIN_TIMESTEPS",
    "Network",
    "TiledNetwork",
    "gaussian_window",
    "guided_velocity",
    "sample_euler",
    "sample_with_scheduler",
    "sampling_sigmas",
    "tile_starts",
]

Callback = Callable[[int, Tensor], Tensor | None]
"""Called after each step with its number and the latent; a latent that it returns takes that one's place."""

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

    At ``guidance`` 1 the negative prompt has no weight and is not computed. Through a :class:`TiledNetwork` each
    tile is guided by itself, which is the same (blending is linear) and never doubles a whole latent.
    """
    if guidance == 1 or negative_tokens is None or negative_pooled is None:
        return network(z, lr_latent, timestep, tokens, pooled, return_dict=False)
    if isinstance(network, TiledNetwork):
        tiled = network

        def guided_tiles(z: Tensor, lr_latent: Tensor | None, index: Tensor) -> Tensor:
            negative = negative_tokens[index], negative_pooled[index]
            conditions = timestep[index], tokens[index], pooled[index], *negative
            return guided_velocity(tiled.network, z, lr_latent, *conditions, guidance)

        return tiled.blend(guided_tiles, z, lr_latent, forwards=2)

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
    # In the type of the latent: guidance would multiply the rounding of a half-precision network.
    negative, positive = both.to(z.dtype).chunk(2)
    return negative + guidance * (positive - negative)


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
    guidance_interval: tuple[float, float] | None = None,
    noise: Tensor | None = None,
    generator: torch.Generator | None = None,
    start: Literal["noise", "lr"] = "noise",
    first_sigma: float = 1.0,
    callback: Callback | None = None,
    interrupted: Callable[[], bool] | None = None,
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
        guidance_interval: lowest and highest σ of the steps that are guided (arXiv 2404.07724); the others follow the
            prompt alone, at half the cost. None guides all.
        noise: the starting noise, (B, C, H, W); drawn from ``generator`` if not given.
        start: ``noise``, or ``lr``: the LR latent noised to ``first_sigma``. (At a first σ of 1
            the two are the same: nothing is left of the LR latent.)
        first_sigma: the first σ; 1 when starting from noise.
        callback: see :data:`Callback`.
        interrupted: asked before each step; where it says so, the latent is returned as it is.

    Returns:
        The sampled latent, (B, C, H, W).

    Raises:
        ValueError: for an unknown start, or a first σ below 1 when starting from noise.
    """
    if start not in ("noise", "lr"):
        raise ValueError(f"start={start!r}: choose noise or lr")
    if start == "noise" and first_sigma != 1:
        raise ValueError("starting from noise, the first sigma is 1; use start=lr for a lower one")
    with torch.no_grad():
        if noise is None:
            device = generator.device if generator is not None else lr_latent.device
            noise = torch.randn(lr_latent.shape, generator=generator, device=device, dtype=torch.float32)
        sigmas = sampling_sigmas(steps, shift, first_sigma)
        z = noise.to(lr_latent) if start == "noise" else interpolate(lr_latent, noise.to(lr_latent), sigmas[:1])
        del noise  # of a large image's latents no more than are needed are kept
        timesteps = (sigmas[:-1] * TRAIN_TIMESTEPS).to(z.device, torch.float32)
        positive = encoder_hidden_states, pooled_projections
        negative = negative_encoder_hidden_states, negative_pooled_projections
        stepping = Stepping.of(network, lr_latent, timesteps, positive, negative, guidance != 1)
        for i in range(steps):
            if interrupted is not None and interrupted():
                break
            timestep = timesteps[i].expand(len(z))
            weight = guidance if is_guided(float(sigmas[i]), guidance_interval) else 1.0
            velocity = guided_velocity(stepping.network, z, stepping.lr_latent, timestep, *stepping.prompts(i), weight)
            z = torch.add(z, velocity.to(z.dtype), alpha=float(sigmas[i + 1] - sigmas[i]))
            del velocity
            if callback is not None and (replaced := callback(i, z)) is not None:
                z = replaced
        return z


def sample_with_scheduler(
    network: Network,
    lr_latent: Tensor,
    scheduler: Any,
    *,
    encoder_hidden_states: Tensor,
    pooled_projections: Tensor,
    negative_encoder_hidden_states: Tensor | None = None,
    negative_pooled_projections: Tensor | None = None,
    steps: int,
    guidance: float,
    guidance_interval: tuple[float, float] | None = None,
    noise: Tensor,
    callback: Callback | None = None,
    interrupted: Callable[[], bool] | None = None,
) -> Tensor:
    """Sample as :func:`sample_euler` does, from noise, by another of diffusers' flow-matching schedulers.

    Args:
        scheduler: one whose model output is the velocity ε − z and whose timesteps are 1000σ, from σ=1 (Heun's, or
            a multistep one with ``use_flow_sigmas``); it may call the network more often than ``steps`` says.
        steps … interrupted: see :func:`sample_euler`.

    Raises:
        UserError: where the scheduler is not one of flow matching.
    """
    config = scheduler.config
    flow = any("FlowMatch" in kind.__name__ for kind in type(scheduler).__mro__)
    flow = flow or config.get("prediction_type") == "flow_prediction"
    if not flow:
        raise UserError(
            f"scheduler {type(scheduler).__name__} is not one of flow matching: use FlowMatchEulerDiscreteScheduler, "
            "or another with prediction_type=flow_prediction and use_flow_sigmas=True"
        )
    with torch.no_grad():
        scheduler.set_timesteps(steps, device=lr_latent.device)
        z = noise.to(lr_latent)
        del noise
        positive = encoder_hidden_states, pooled_projections
        negative = negative_encoder_hidden_states, negative_pooled_projections
        stepping = Stepping.of(network, lr_latent, scheduler.timesteps.float(), positive, negative, guidance != 1)
        for i, t in enumerate(scheduler.timesteps):
            if interrupted is not None and interrupted():
                break
            timestep = t.float().expand(len(z))
            # The timestep is 1000σ.
            weight = guidance if is_guided(float(t) / TRAIN_TIMESTEPS, guidance_interval) else 1.0
            velocity = guided_velocity(stepping.network, z, stepping.lr_latent, timestep, *stepping.prompts(i), weight)
            z = scheduler.step(velocity, t, z, return_dict=False)[0].to(lr_latent.dtype)
            if callback is not None and (replaced := callback(i, z)) is not None:
                z = replaced
        return z

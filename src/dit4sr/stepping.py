"""What the steps of a sampling call: a network as it is, or one that computes ahead what no step changes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Protocol, Self

from torch import Tensor

from dit4sr.tiled_network import Network, TiledNetwork


class Preparing(Protocol):
    """A network that computes ahead of a sampling what no step of it changes; see :mod:`dit4sr.acceleration`."""

    prepares: bool
    """Whether it is to be prepared; else it is called as any other network."""

    def begin(self) -> None:
        """A sampling begins."""

    def prepare_text(self, tokens: Tensor) -> Tensor:
        """Text tokens (B, M, W) → what ``velocity`` takes in their place, B first."""

    def prepare_schedule(self, timesteps: Tensor, pooled: Tensor) -> Callable[[int], Tensor]:
        """Timesteps (T,) and pooled text (B, P) → step ↦ what ``velocity`` takes in the pooled text's place."""

    def prepare_lr(self, lr_latent: Tensor) -> Tensor:
        """The LR latent → what ``velocity`` takes in its place where each step is one call, B first."""

    velocity: Network
    """Called as a network with what was prepared."""


def is_guided(sigma: float, interval: tuple[float, float] | None) -> bool:
    """Whether a step at σ lies in the interval of guidance, its ends included; None is all."""
    return interval is None or interval[0] <= sigma <= interval[1]


StepPrompts = tuple[Any, Any, Any, Any]
"""Text tokens, pooled text, and both of the negative prompt, or what a network made of them."""

Prompt = tuple[Tensor | None, Tensor | None]
"""Text tokens (B, M, W) and pooled text (B, P); None twice without a negative prompt."""


@dataclass(frozen=True, eq=False)
class Stepping:
    """What the steps of one sampling call: the network, prepared where it can be.

    Args:
        network: see :data:`Network`.
        lr_latent: the LR latent, or what the network made of it.
        prompts: step ↦ its prompts.
    """

    network: Network
    lr_latent: Tensor
    prompts: Callable[[int], StepPrompts]

    @classmethod
    def of(
        cls, network: Network, lr_latent: Tensor, timesteps: Tensor, positive: Prompt, negative: Prompt, guided: bool
    ) -> Self:
        """Prepare a network that is :class:`Preparing`; any other is left as it is.

        Args:
            network, lr_latent: see :func:`sample_euler`.
            timesteps: (T,), of all calls, in their order.
            positive, negative: the prompts.
            guided: whether the negative one counts.
        """
        tiled = network if isinstance(network, TiledNetwork) else None
        inner: Any = network if tiled is None else tiled.network
        if not getattr(inner, "prepares", False):
            return cls(network, lr_latent, lambda step: (*positive, *negative))
        inner.begin()
        prompts = [positive, negative] if guided and negative[0] is not None else [positive]
        prepared = [
            (inner.prepare_text(tokens), inner.prepare_schedule(timesteps, pooled)) for tokens, pooled in prompts
        ]

        def at(step: int) -> StepPrompts:
            parts = [(text, schedule(step)) for text, schedule in prepared]
            return (*parts[0], *(parts[1] if len(parts) == 2 else (None, None)))

        # Tiles cut the LR latent at every step anyway, and what is made of it is larger than it is.
        if tiled is None:
            return cls(inner.velocity, inner.prepare_lr(lr_latent), at)
        whole = tiled.is_one_call(lr_latent, len(prepared))
        lr = inner.prepare_lr(lr_latent) if whole else lr_latent
        return cls(replace(tiled, network=inner.velocity), lr, at)

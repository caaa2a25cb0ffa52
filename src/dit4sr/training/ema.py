"""Exponential moving average of the trainable weights."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class ExponentialMovingAverage:
    """θ̄ ← d θ̄ + (1−d) θ over the trainable parameters, d rising from 0.1 to ``decay``.

    Args:
        network: whose parameters are averaged; frozen ones are not kept.
        decay: the final d; step t uses min(decay, (1+t)/(10+t)), so that short runs are not
            held back by their first weights.
    """

    def __init__(self, network: nn.Module, decay: float) -> None:
        self.decay = decay
        self.average = {n: p.detach().clone() for n, p in network.named_parameters() if p.requires_grad}

    @torch.no_grad()
    def update(self, network: nn.Module, step: int) -> None:
        """Take in the weights after optimiser step ``step`` (0, 1, …)."""
        decay = min(self.decay, (1 + step) / (10 + step))
        current = dict(network.named_parameters())
        weights = [current[n].detach().to(average.device) for n, average in self.average.items()]
        torch._foreach_lerp_(list(self.average.values()), weights, 1 - decay)

    @contextmanager
    def applied(self, network: nn.Module) -> Iterator[None]:
        """Within the context the network has the averaged weights."""
        current = dict(network.named_parameters())
        kept = {n: current[n].detach().clone() for n in self.average}
        try:
            self._copy(self.average, current)
            yield
        finally:
            self._copy(kept, current)

    @staticmethod
    @torch.no_grad()
    def _copy(source: dict[str, Tensor], target: dict[str, nn.Parameter]) -> None:
        for name, value in source.items():
            target[name].copy_(value)

    def state_dict(self) -> dict[str, Tensor]:
        """The averaged weights, by parameter name."""
        return dict(self.average)

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Take averaged weights back.

        Raises:
            ValueError: where the names differ from the trainable parameters'.
        """
        if wrong := sorted(set(state) ^ set(self.average)):
            raise ValueError(f"the averaged weights do not fit the network: {', '.join(wrong[:5])} …")
        for name, value in state.items():
            self.average[name].copy_(value)

    def to(self, device: torch.device | str) -> None:
        """Move the average: beside the network, or to the host's memory, to which each update then copies."""
        self.average = {n: v.to(device) for n, v in self.average.items()}

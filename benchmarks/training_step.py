"""A training step of a network on latents that are there already, and a network as it is trained."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from typing import Any

import torch

from dit4sr import flow
from dit4sr.models.attention_kernel import attention_kernel
from dit4sr.models.base import as_arguments
from dit4sr.models.build import Network, build_network, freeze, from_base
from dit4sr.models.flops import network_inputs, scale_of
from dit4sr.training.ema import ExponentialMovingAverage
from dit4sr.training.optimizers import build_optimizer, skips_on_device


def random_training_network(model: Mapping[str, Any], backbone: Mapping[str, Any], device: str) -> Network:
    """A network as it is trained: with a pretrained base that is frozen, in bfloat16 and of random weights."""
    if not backbone["pretrained"]:
        return build_network(model, backbone, seed=0).to(device)
    from diffusers import SD3Transformer2DModel

    with torch.device(device), torch.no_grad():
        base = SD3Transformer2DModel(**as_arguments(backbone["transformer"])).to(torch.bfloat16)
        network = from_base(model, base, pretrained=True)
    freeze(network, pretrained=True)
    for parameter in network.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    return network.train()


class Step:
    """One training step of a network on latents that are there already."""

    def __init__(
        self, network: Network, backbone: Mapping[str, Any], training: Mapping[str, Any], batch: int, device: str
    ) -> None:
        self.network, self.device = network, device
        self.optimizer, self.ema = build_optimizer(network, training), ExponentialMovingAverage(network, 0.999)
        self.clip, self.half = training["gradient_clip"], "16" in training["precision"]
        self.trained = [p for p in network.parameters() if p.requires_grad]
        side = backbone["crop"] // scale_of(backbone)
        self.z, self.lr, _, self.tokens, self.pooled = network_inputs(backbone, side, batch, device)
        self.eps, self.sigma = torch.randn_like(self.z), torch.rand(batch, device=device)

    def __call__(self) -> None:
        try:
            with attention_kernel("auto", torch.device(self.device)):
                self._step()
        finally:
            self.optimizer.zero_grad(set_to_none=True)

    def _step(self) -> None:
        with torch.autocast(torch.device(self.device).type, torch.bfloat16) if self.half else nullcontext():
            z_t = flow.interpolate(self.z, self.eps, self.sigma)
            arguments = z_t, self.lr, 1000 * self.sigma, self.tokens, self.pooled
            loss = flow.latent_loss(self.network(*arguments, return_dict=False), self.z, self.eps, self.sigma)
        loss.backward()
        finite = torch.isfinite(torch.nn.utils.get_total_norm([p.grad for p in self.trained if p.grad is not None]))
        if skips_on_device(self.optimizer):
            self.optimizer.found_inf = (~finite).float()  # type: ignore[attr-defined]
        else:
            assert bool(finite)
        torch.nn.utils.clip_grad_norm_(self.trained, self.clip)
        self.optimizer.step()
        self.ema.update(self.network, 1000)

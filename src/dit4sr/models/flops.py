"""Floating-point operations of a network: of a forward pass, and of a training step.

A multiply-add counts 2; matrix products, convolutions and attention alone are counted, as is usual for utilisation
(arXiv 2204.02311, appendix B).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from math import prod
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils.flop_counter import FlopCounterMode

from dit4sr.models.build import Network, build_on_meta


def scale_of(backbone: Mapping[str, Any]) -> int:
    """Pixels per latent pixel."""
    return 4 if backbone["autoencoder"]["name"] == "block_dct" else 8


def flops_of(action: Callable[[], object]) -> int:
    """FLOPs of what ``action`` computes without gradients, by torch's counter."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        action()
    return counter.get_total_flops()


def forward_flops(network: Network, backbone: Mapping[str, Any], side: int, device: str = "meta") -> int:
    """FLOPs of one forward pass on a latent of ``side``×``side`` pixels, with the LR stream."""
    inputs = network_inputs(backbone, side, device=device)
    return flops_of(lambda: network(*inputs, return_dict=False))


def network_inputs(
    backbone: Mapping[str, Any], side: int, batch: int = 1, device: str | torch.device = "meta"
) -> tuple[Tensor, ...]:
    """Random inputs of a network: noisy latent, LR latent, timestep, text tokens, pooled text."""
    fields, text = backbone["transformer"], backbone["text_encoder"]
    generator = None if str(device) == "meta" else torch.Generator(device).manual_seed(0)

    def draw(*shape: int) -> Tensor:
        return torch.randn(batch, *shape, device=device, generator=generator)

    latents = draw(fields["in_channels"], side, side), draw(fields["in_channels"], side, side)
    timestep = torch.full((batch,), 500.0, device=device)
    return *latents, timestep, draw(text["tokens"], text["width"]), draw(text["pooled_width"])


@dataclass(frozen=True)
class TrainingFlops:
    """FLOPs of one training step, by what they are for.

    With F the forward FLOPs of a product y = W x: its weight's gradient costs F again where W trains, and its input's
    gradient F where x depends on anything that trains; neither is computed where no loss is reached from y. For
    attention, F = 4·B·H·N_q·N_k·d, the gradients of q, k and v cost 2F together. So a network that trains as a whole
    costs 3 forward passes, and a frozen base under trained layers about 2.

    Attributes:
        forward: of the forward pass.
        activations: of the gradients that travel back through the activations, through frozen layers too.
        weights: of the gradients of the weights that train.
        recomputed: of activations that gradient checkpointing computes again; no part of ``model``.
    """

    forward: int
    activations: int
    weights: int
    recomputed: int = 0

    @property
    def model(self) -> int:
        """What the step needs, for model FLOPs utilisation (MFU)."""
        return self.forward + self.activations + self.weights

    @property
    def hardware(self) -> int:
        """What the device computes, for hardware FLOPs utilisation (HFU)."""
        return self.model + self.recomputed


def training_flops(network: nn.Module, inputs: Sequence[Tensor]) -> TrainingFlops:
    """Count a step of a network by the formula of :class:`TrainingFlops`, without checkpointing.

    Args:
        network: on any device (on the meta device nothing is computed); parameters with ``requires_grad`` train.
            Their ``grad`` is left alone.
        inputs: arguments of its forward pass.
    """
    trained = [parameter for parameter in network.parameters() if parameter.requires_grad]
    with _Products() as products, torch.enable_grad():
        output = network(*inputs, return_dict=False)
    # Anomaly detection, where it is on, would ask the meta device for values.
    with torch.autograd.set_detect_anomaly(False):
        torch.autograd.grad(output.sum(), trained, allow_unused=True)  # runs the products' hooks
    return TrainingFlops(products.forward, products.activations, products.weights)


def step_flops(
    model: Mapping[str, Any], backbone: Mapping[str, Any], side: int, *, checkpointing: bool = False
) -> TrainingFlops:
    """Count one sample of a training step on the meta device; autoencoder and text encoders are not counted.

    Args:
        model: configs/model.
        backbone: configs/backbone; its ``pretrained`` says what trains, and is not read.
        side: of the square latent.
        checkpointing: count what gradient checkpointing computes again, too.
    """
    return _step_flops(json.dumps([dict(model), dict(backbone)], default=list), side, checkpointing)


@cache
def _step_flops(configs: str, side: int, checkpointing: bool) -> TrainingFlops:
    model, backbone = json.loads(configs)
    network, inputs = build_on_meta(model, backbone).train(), network_inputs(backbone, side)
    counted = training_flops(network, inputs)
    if not checkpointing:
        return counted
    plain = _with_backward(network, inputs)
    network.enable_gradient_checkpointing()
    again = _with_backward(network, inputs) - plain
    return TrainingFlops(counted.forward, counted.activations, counted.weights, again)


def _with_backward(network: nn.Module, inputs: Sequence[Tensor]) -> int:
    """FLOPs of a forward and a backward pass, by torch's counter."""
    with FlopCounterMode(display=False) as counter, torch.enable_grad(), torch.autograd.set_detect_anomaly(False):
        network(*inputs, return_dict=False).sum().backward()
    network.zero_grad(set_to_none=True)
    return counter.get_total_flops()


UNKNOWN = ("matmul", "bmm", "mm", "addmm", "baddbmm", "einsum", "conv1d", "conv3d", "conv_transpose2d")
"""Products that these networks do not have; to be counted before a network may."""


class _Products(TorchFunctionMode):
    """Counts the products of a forward pass as they are called; those of their gradients when a backward pass comes."""

    def __init__(self) -> None:
        super().__init__()
        self.forward = self.activations = self.weights = 0

    def __torch_function__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        output = function(*args, **kwargs)
        name = getattr(function, "__name__", "")
        if name == "linear":
            self._weighted(output, args[0], args[1], 2 * prod(output.shape) * args[0].shape[-1])
        elif name == "conv2d":
            self._weighted(output, args[0], args[1], 2 * prod(output.shape) * prod(args[1].shape[1:]))
        elif name == "scaled_dot_product_attention":
            self._attention(output, args[0], args[1], args[2])
        elif name in UNKNOWN and not (name == "einsum" and len(args) == 2):  # of one operand: a permutation
            raise NotImplementedError(f"a product that is not counted: {name}")
        return output

    def _weighted(self, output: Tensor, x: Tensor, weight: Tensor, flops: int) -> None:
        self.forward += flops
        if output.requires_grad:
            output.register_hook(self._later(flops * x.requires_grad, flops * weight.requires_grad))

    def _attention(self, output: Tensor, q: Tensor, k: Tensor, v: Tensor) -> None:
        pairs = 2 * prod(q.shape[:-1]) * k.shape[-2]  # FLOPs a channel of one N_q×N_k product
        d, d_v = q.shape[-1], v.shape[-1]
        self.forward += pairs * (d + d_v)
        of_scores = q.requires_grad or k.requires_grad
        back = pairs * (d * q.requires_grad + d * k.requires_grad + d_v * of_scores + d_v * v.requires_grad)
        if output.requires_grad:
            output.register_hook(self._later(back, 0))

    def _later(self, activations: int, weights: int) -> Callable[[Tensor], None]:
        def reached(_gradient: Tensor) -> None:
            self.activations += activations
            self.weights += weights

        return reached

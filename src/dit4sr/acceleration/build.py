"""From a trained network to a fast one, as configs/acceleration says."""

from __future__ import annotations

from typing import Any, NoReturn

import torch
from torch import nn

from dit4sr.acceleration.compiling import compile_network
from dit4sr.acceleration.fast_controlnet import FastControlNet
from dit4sr.acceleration.fast_dit4sr import FastDiT4SR
from dit4sr.acceleration.graphs import GraphedStep
from dit4sr.acceleration.network import FastNetwork
from dit4sr.acceleration.quantising import quantise
from dit4sr.acceleration.settings import AccelerationSettings
from dit4sr.errors import UserError
from dit4sr.models.controlnet import SD3ControlNet
from dit4sr.models.dit4sr import DiT4SRTransformer2DModel
from dit4sr.models.precision import PLAIN


@torch.inference_mode(False)
@torch.no_grad()
def accelerate(network: Any, settings: AccelerationSettings) -> Any:
    """A faster network with the same call, for inference.

    The trained network's parameters are taken over, folded in place and never beside the originals: it cannot be
    used, trained or saved any more (nor can the fast one be saved). Where the settings change nothing it is returned
    as it is.

    Args:
        network: DiT4SR, a variant, or the SD3-ControlNet baseline, on the device where it will run.
        settings: see :class:`AccelerationSettings`.

    Returns:
        A :data:`dit4sr.sampling.Network` that :func:`dit4sr.sampling.sample_euler` prepares ahead.

    Raises:
        UserError: where a package, a compiler or a kind of GPU is missing, or weights are quantised or adapted.
        TypeError: for a network of another kind.
    """
    if not settings.changes_network:
        return network
    fast: FastNetwork
    if isinstance(network, nn.Module):
        in_one_type(network)
    if settings.cuda_graphs and next(network.parameters()).device.type != "cuda":
        raise UserError("acceleration.cuda_graphs needs a GPU: use acceleration=compiled or exact")
    if settings.reuse_below is not None and isinstance(network, SD3ControlNet):
        raise UserError(
            "acceleration.reuse_below is for DiT4SR and its variants: use null with the SD3-ControlNet baseline"
        )
    if isinstance(network, DiT4SRTransformer2DModel):
        fast = FastDiT4SR(network, settings)
    elif isinstance(network, SD3ControlNet):
        fast = FastControlNet(network, settings)
    else:
        raise TypeError(f"{type(network).__name__} cannot be accelerated: give a DiT4SR or an SD3ControlNet")
    network.forward = taken_over
    fast.eval().requires_grad_(False)
    if settings.quantise != "none":
        quantise(fast, settings.quantise, fast.device)
    if settings.compile != "none":
        compile_network(fast, settings, fast.device)
    if settings.cuda_graphs:
        fast.run = GraphedStep(fast.run)
    return fast


def taken_over(*args: Any, **kwargs: Any) -> NoReturn:
    """What calling a trained network does once its weights are another's."""
    raise UserError("this network's weights were taken over by an accelerated one: call that, or load it again")


def in_one_type(network: Any) -> None:
    """Bring a network whose control weights have another type than its base to the base's, as autocast would.

    Raises:
        UserError: for weights that cannot be folded: quantised ones, or adapters beside them.
    """
    types = {parameter.dtype for parameter in network.parameters()}
    if not types <= set(PLAIN):
        raise UserError(
            "a quantised network cannot be accelerated: load it unquantised, and use acceleration.quantise=…"
        )
    if any(getattr(module, "peft_config", None) for module in network.modules()):
        raise UserError(
            "a network with adapters cannot be accelerated: fuse them first (network.fuse_lora()), and unload"
        )
    if len(types) > 1:
        base = network.transformer if isinstance(network, SD3ControlNet) else network
        nn.Module.to(network, dtype=base.proj_out.weight.dtype)

"""From a trained network to a fast one, as configs/acceleration says."""

from __future__ import annotations

from typing import Any, NoReturn

import torch
from torch import Tensor, nn

from dit4sr.acceleration.blocks import is_block_matrix
from dit4sr.acceleration.compiling import check_compiler, check_options, compile_network
from dit4sr.acceleration.fast_controlnet import FastControlNet
from dit4sr.acceleration.fast_dit4sr import FastDiT4SR
from dit4sr.acceleration.graphs import GraphedStep
from dit4sr.acceleration.network import FastNetwork
from dit4sr.acceleration.settings import AccelerationSettings
from dit4sr.errors import UserError
from dit4sr.models.controlnet import SD3ControlNet
from dit4sr.models.dit4sr import DiT4SRTransformer2DModel
from dit4sr.models.precision import PLAIN
from dit4sr.quantising import check_quantising, quantise


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
        A :data:`dit4sr.sampling.Network` that :func:`dit4sr.sampling.sample_euler` prepares ahead; one that was made
        by the same settings already is returned as it is.

    Raises:
        UserError: where a package, a compiler or a kind of GPU is missing, weights are quantised, adapted, or of a type
            that cannot be quantised so, or the network was accelerated by other settings. The network is as it was.
        TypeError: for a network of another kind.
    """
    if isinstance(network, FastNetwork):
        if network.settings == settings:
            return network
        raise UserError("this network is accelerated already, by other settings: load it again, then accelerate it")
    if not settings.changes_network:
        return network
    if not isinstance(network, DiT4SRTransformer2DModel | SD3ControlNet):
        raise TypeError(f"{type(network).__name__} cannot be accelerated: give a DiT4SR or an SD3ControlNet")
    check_weights(network)
    weight = base_weight(network)
    dtype = weight.dtype if settings.network_dtype is None else getattr(torch, settings.network_dtype)
    # All that may be refused is refused before weights are taken over.
    if settings.quantise != "none":
        check_quantising(settings.quantise, weight.device, dtype, "acceleration.quantise")
    if settings.network_dtype == "float16" and weight.device.type != "cuda":
        raise UserError("acceleration.network_dtype=float16 needs a GPU: use bfloat16, or null")
    if settings.cuda_graphs and weight.device.type != "cuda":
        raise UserError("acceleration.cuda_graphs needs a GPU: use acceleration=compiled or exact")
    if settings.depth_wise == "kernel" and weight.device.type != "cuda":
        raise UserError("acceleration.depth_wise=kernel needs a GPU: use auto, conv or shifts")
    if settings.compile != "none" or settings.depth_wise == "kernel":
        check_compiler(weight.device)
        check_options(settings.compile_options)
    if settings.reuse_below is not None and isinstance(network, SD3ControlNet):
        raise UserError(
            "acceleration.reuse_below is for DiT4SR and its variants: use null with the SD3-ControlNet baseline"
        )
    # Control weights may have another type than the base: they get the base's, as autocast would give them.
    if {parameter.dtype for parameter in network.parameters()} != {dtype}:
        nn.Module.to(network, dtype=dtype)
    fast: FastNetwork
    if isinstance(network, DiT4SRTransformer2DModel):
        fast = FastDiT4SR(network, settings)
    else:
        fast = FastControlNet(network, settings)
    network.forward = taken_over
    fast.eval().requires_grad_(False)
    if settings.quantise != "none":
        quantise(fast, settings.quantise, fast.device, is_block_matrix)
    if settings.compile != "none":
        compile_network(fast, settings)
    if settings.cuda_graphs:
        fast.run = GraphedStep(fast.run)
    return fast


def taken_over(*args: Any, **kwargs: Any) -> NoReturn:
    """What calling a trained network does once its weights are another's."""
    raise UserError("this network's weights were taken over by an accelerated one: call that, or load it again")


def base_weight(network: DiT4SRTransformer2DModel | SD3ControlNet) -> Tensor:
    """A weight of the transformer that the control weights were added to: of the type that all get."""
    base = network.transformer if isinstance(network, SD3ControlNet) else network
    return base.proj_out.weight


def check_weights(network: nn.Module) -> None:
    """Refuse weights that cannot be folded: quantised ones, or adapters beside them.

    Raises:
        UserError: saying what to do.
    """
    if not {parameter.dtype for parameter in network.parameters()} <= set(PLAIN):
        raise UserError(
            "a quantised network cannot be accelerated: load it unquantised, and use acceleration.quantise=…"
        )
    if any(getattr(module, "peft_config", None) for module in network.modules()):
        raise UserError(
            "a network with adapters cannot be accelerated: fuse them first (network.fuse_lora()), and unload"
        )

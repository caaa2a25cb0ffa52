"""From a model's and a backbone's config to a network, with what trains and what is frozen."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import SD3Transformer2DModel

from dit4sr.models.base import as_arguments, load_pretrained_base
from dit4sr.models.controlnet import SD3ControlNet
from dit4sr.models.dit4sr import DiT4SRTransformer2DModel
from dit4sr.models.initialisation import initialise_base
from dit4sr.models.variant import check_model_config, spec_of

Network = DiT4SRTransformer2DModel | SD3ControlNet


def build_network(
    model: Mapping[str, Any],
    backbone: Mapping[str, Any],
    seed: int,
    *,
    dtype: torch.dtype | None = None,
    trainable_dtype: torch.dtype | None = torch.float32,
) -> Network:
    """Build a network and freeze what does not train.

    A pretrained base stays frozen and only the control weights train; from scratch everything
    does. Parameters that the specification can never reach are frozen in any case. A pretrained base's fields
    are those of its own config.json; ``backbone.transformer`` describes a base from scratch alone.

    Args:
        model: configs/model.
        backbone: configs/backbone.
        seed: of the weights of a base that starts from scratch. All models get the same base.
        dtype: of a pretrained base; None is that of its files.
        trainable_dtype: of the control weights on a pretrained base; None is the base's.

    Raises:
        UserError: for a config that is incomplete, or a base that cannot be loaded.
    """
    check_model_config(model)
    pretrained = backbone.get("pretrained")
    if pretrained:
        base = load_pretrained_base(pretrained, dtype, local_files_only=bool(backbone.get("local_files_only")))
    else:
        base = initialise_base(SD3Transformer2DModel(**as_arguments(backbone["transformer"])), seed)
    network = from_base(model, base, pretrained=bool(pretrained))
    freeze(network, pretrained=bool(pretrained))
    if pretrained and trainable_dtype is not None:
        for parameter in network.parameters():
            if parameter.requires_grad:
                parameter.data = parameter.data.to(trainable_dtype)
    return network.train()


def from_base(model: Mapping[str, Any], base: SD3Transformer2DModel, *, pretrained: bool) -> Network:
    """Put the model's LR branch on a base transformer (also on the meta device)."""
    if model["network"] == "sd3_controlnet":
        return SD3ControlNet.from_sd3(base)
    return DiT4SRTransformer2DModel.from_sd3(base, spec_of(model), control_init="zero" if pretrained else "identity")


def build_on_meta(model: Mapping[str, Any], backbone: Mapping[str, Any]) -> Network:
    """The network without storage, for counting: no weights are read."""
    check_model_config(model)
    with torch.device("meta"):
        base = SD3Transformer2DModel(**as_arguments(backbone["transformer"]))
    network = from_base(model, base, pretrained=bool(backbone.get("pretrained")))
    freeze(network, pretrained=bool(backbone.get("pretrained")))
    return network


def freeze(network: Network, *, pretrained: bool) -> None:
    """Set ``requires_grad``: the control weights, or everything from scratch, less the unreachable."""
    trainable = set(network.control_parameter_names()) if pretrained else {n for n, _ in network.named_parameters()}
    trainable -= set(network.unreachable_parameter_names())
    for name, parameter in network.named_parameters():
        parameter.requires_grad_(name in trainable)


@dataclass(frozen=True)
class ParameterCount:
    """Numbers of parameters (buffers, such as the positional table, not counted)."""

    total: int
    control: int
    trainable: int
    unreachable: int


def count_parameters(network: Network) -> ParameterCount:
    """Count a network's parameters, by role."""
    sizes = {n: p.numel() for n, p in network.named_parameters()}
    return ParameterCount(
        total=sum(sizes.values()),
        control=sum(sizes[n] for n in network.control_parameter_names()),
        trainable=sum(p.numel() for p in network.parameters() if p.requires_grad),
        unreachable=sum(sizes[n] for n in network.unreachable_parameter_names()),
    )

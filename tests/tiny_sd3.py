"""Tiny networks with random weights, and inputs for them.

Legend: B batch, C latent channels, M text tokens.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from diffusers import SD3Transformer2DModel
from torch import Tensor, nn

from dit4sr.models import DiT4SRTransformer2DModel, LRStreamSpec, SD3ControlNet

DIT4SR = LRStreamSpec(attention="joint", residual=True, injection="conv", key_source="lr")
SPECS = {
    "dit4sr": DIT4SR,
    "variant_a": replace(DIT4SR, attention="separate"),
    "variant_b": replace(DIT4SR, residual=False),
    "variant_c": replace(DIT4SR, injection="none"),
    "variant_d": replace(DIT4SR, injection="linear"),
    "variant_d_per_channel": replace(DIT4SR, injection="per_channel"),
    "noise_keys": replace(DIT4SR, key_source="noise"),
}


def tiny_fields(**changes: Any) -> dict[str, Any]:
    """The fields of an SD3 transformer of width 16; the channels and the widths all differ."""
    fields: dict[str, Any] = {
        "sample_size": 8,
        "patch_size": 2,
        "in_channels": 4,
        "out_channels": 4,
        "num_layers": 3,
        "attention_head_dim": 8,
        "num_attention_heads": 2,
        "joint_attention_dim": 12,
        "caption_projection_dim": 16,
        "pooled_projection_dim": 10,
        "pos_embed_max_size": 9,
        "dual_attention_layers": (0,),
        "qk_norm": "rms_norm",
    }
    return fields | changes


@torch.no_grad()
def randomise(module: nn.Module, seed: int, only: list[str] | None = None) -> None:
    """Draw every parameter (or those named) afresh, at scales that keep activations near 1.

    Norm weights and biases too: at their usual ones and zeros a wrong one would not show.
    """
    generator = torch.Generator().manual_seed(seed)
    for name, p in module.named_parameters():
        draw = torch.randn(p.shape, generator=generator).to(p)
        if only is not None and name not in only:
            continue
        if p.ndim > 1:
            p.copy_(draw / p[0].numel() ** 0.5)
        elif name.endswith("weight"):
            p.copy_(1 + 0.3 * draw)
        else:
            p.copy_(0.3 * draw)


def tiny_transformer(seed: int = 0, **changes: Any) -> SD3Transformer2DModel:
    """Diffusers' transformer, random everywhere, in eval mode."""
    transformer = SD3Transformer2DModel(**tiny_fields(**changes)).eval()
    randomise(transformer, seed)
    return transformer


def tiny_network(spec: LRStreamSpec = DIT4SR, seed: int = 0, **changes: Any) -> DiT4SRTransformer2DModel:
    """DiT4SR on a random base with random control weights (the base is the same for every spec)."""
    network = DiT4SRTransformer2DModel.from_sd3(tiny_transformer(seed, **changes), spec)
    randomise(network, seed + 1, only=network.control_parameter_names())
    return network


def tiny_controlnet(seed: int = 0, **changes: Any) -> SD3ControlNet:
    """The baseline on the same random base, its ControlNet random too."""
    network = SD3ControlNet.from_sd3(tiny_transformer(seed, **changes))
    randomise(network, seed + 1, only=network.control_parameter_names())
    return network


@dataclass
class Inputs:
    """What a network is called with."""

    z: Tensor
    lr: Tensor
    timestep: Tensor
    tokens: Tensor
    pooled: Tensor

    def call(self, network: nn.Module, **changes: Any) -> Tensor:
        """The network's velocity, (B, C, H, W); ``lr=None`` switches the LR stream off."""
        fields = {f: getattr(self, f) for f in ("z", "lr", "timestep", "tokens", "pooled")} | changes
        return network(*fields.values(), return_dict=False)


def tiny_inputs(height: int = 6, width: int = 10, batch: int = 2, seed: int = 7) -> Inputs:
    """Inputs for :func:`tiny_fields`; not square by default."""
    g = torch.Generator().manual_seed(seed)
    return Inputs(
        z=torch.randn(batch, 4, height, width, generator=g),
        lr=torch.randn(batch, 4, height, width, generator=g),
        timestep=torch.rand(batch, generator=g) * 1000,
        tokens=torch.randn(batch, 5, 12, generator=g),
        pooled=torch.randn(batch, 10, generator=g),
    )


def relative_error(actual: Tensor, expected: Tensor) -> float:
    """Largest difference over the largest expected value."""
    return float(((actual - expected).abs().max() / expected.abs().max()).detach())

"""Starting values: of the control weights on top of a base, and of a base trained from scratch."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import torch
from diffusers import SD3Transformer2DModel
from diffusers.models.normalization import AdaLayerNormZero, SD35AdaLayerNormZeroX
from torch import nn

from dit4sr.models.attention import LRStreamAttention
from dit4sr.models.blocks import LRStreamFeedForward

ControlInit = Literal["zero", "identity"]


def control_names(names: Iterator[str] | list[str]) -> list[str]:
    """The control weights among parameter names (``…to_q_control.weight``, ``…ff.control_conv.bias``, …)."""
    return [n for n in names if "_control." in n or ".ff.control_" in n]


@torch.no_grad()
def initialise_control(network: nn.Module, control_init: ControlInit) -> None:
    """Give the control weights of ``network`` their starting values, in place.

    Call this after the base weights are loaded: P_o starts as a copy of W_o. P_q, P_k and P_v
    start at zero for a pretrained base and as the identity for one trained from scratch; the
    injection always starts at zero.
    """
    if control_init not in ("zero", "identity"):
        raise ValueError(f"control_init={control_init!r}: choose zero (pretrained base) or identity (from scratch)")
    for module in network.modules():
        if isinstance(module, LRStreamAttention):
            for linear in (module.to_q_control, module.to_k_control, module.to_v_control):
                (nn.init.eye_ if control_init == "identity" else nn.init.zeros_)(linear.weight)
                nn.init.zeros_(linear.bias)
            module.to_out_control.weight.copy_(module.to_out[0].weight)
            module.to_out_control.bias.copy_(module.to_out[0].bias)
        elif isinstance(module, LRStreamFeedForward):
            for name, parameter in module.named_parameters():
                if name.startswith("control_"):
                    nn.init.zeros_(parameter)


@torch.no_grad()
def initialise_base(transformer: SD3Transformer2DModel, seed: int) -> SD3Transformer2DModel:
    """Start an MM-DiT from scratch, in place.

    Xavier linear maps; the modulations start as constants (zero weights, as in adaLN-Zero,
    arXiv 2212.09748, section 3.2), but with open gates, 1 in place of 0: with closed gates and a zero
    output the gradient reaches the LR stream only after hundreds of steps, which a run of minutes
    cannot spare.

    The values depend on ``seed`` alone (not on torch's global state), so every model variant
    built on this base starts from the same shared weights.
    """
    generator = torch.Generator().manual_seed(seed)
    for name, module in transformer.named_modules():
        if not isinstance(module, nn.Linear | nn.Conv2d):
            continue
        nn.init.xavier_uniform_(module.weight.view(module.weight.shape[0], -1), generator=generator)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
        if name.endswith((".norm1.linear", ".norm1_context.linear")) or name == "norm_out.linear":
            nn.init.zeros_(module.weight)
    for module in transformer.modules():
        if isinstance(module, AdaLayerNormZero | SD35AdaLayerNormZeroX):
            # shift, scale, gate of attention; of the MLP; and, with dual attention, of the second attention
            width = module.norm.normalized_shape[0]
            module.linear.bias.view(-1, 3, width)[:, 2] = 1
    nn.init.normal_(transformer.proj_out.weight, std=0.02, generator=generator)
    for linear in (
        transformer.time_text_embed.timestep_embedder.linear_1,
        transformer.time_text_embed.timestep_embedder.linear_2,
    ):
        nn.init.normal_(linear.weight, std=0.02, generator=generator)
    return transformer

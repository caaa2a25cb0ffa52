"""Starting values: of the control weights on top of a base, and of a base trained from scratch."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import torch
from diffusers import SD3Transformer2DModel
from torch import Tensor, nn

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
    injection always starts at zero (DESIGN section 2).
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
    """Start an MM-DiT from scratch, in place: Xavier linear maps, adaLN-Zero (arXiv 2212.09748, section 3.2).

    The values depend on ``seed`` alone (not on torch's global state), so every model variant
    built on this base starts from the same shared weights.
    """
    generator = torch.Generator().manual_seed(seed)

    def xavier(weight: Tensor) -> None:
        nn.init.xavier_uniform_(weight.view(weight.shape[0], -1), generator=generator)

    for name, module in transformer.named_modules():
        if isinstance(module, nn.Linear | nn.Conv2d):
            xavier(module.weight)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
            # The modulations and the output start at zero: every block begins as the identity.
            if name.endswith((".norm1.linear", ".norm1_context.linear")) or name in (
                "norm_out.linear",
                "proj_out",
            ):
                nn.init.zeros_(module.weight)
    for linear in (
        transformer.time_text_embed.timestep_embedder.linear_1,
        transformer.time_text_embed.timestep_embedder.linear_2,
    ):
        nn.init.normal_(linear.weight, std=0.02, generator=generator)
    return transformer

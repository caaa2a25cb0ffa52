"""Approximate: a module's matrices in 8 bits (torchao) or in 4 (bitsandbytes). Both are optional packages."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from dit4sr.errors import UserError

EXTRA = "pip install 'dit4sr[quantise]'"

FP8_CAPABILITY = (8, 9)
"""Compute capability from which matrices are multiplied in 8-bit floats."""

BITS_A_WEIGHT = {"int8_weights": 8 + 16 / 1536, "nf4": 4 + 8 / 64 + 32 / (64 * 256)}
"""With the scales: 16 bits a row of some 1536 weights; 8 a block of 64, and 32 for 256 blocks."""

Chosen = Callable[[str, nn.Module], bool]
"""(name, module) → whether it is quantised."""


def check_quantising(kind: str, device: torch.device, dtype: torch.dtype, setting: str) -> None:
    """Refuse what cannot be quantised here, before any weight is touched.

    Args:
        kind: int8_weights, int8, fp8 or nf4.
        device: where the module is.
        dtype: of its weights.
        setting: the name of the setting that asks for it, such as acceleration.quantise.

    Raises:
        UserError: where the package or the GPU's kind is missing, or the weights have another type than is needed.
    """
    if kind == "fp8" and dtype != torch.bfloat16:  # scales a row each are torchao's for this type alone
        raise UserError(
            f"{setting}=fp8 needs weights in bfloat16, these are {str(dtype).removeprefix('torch.')}: "
            "set acceleration.network_dtype=bfloat16, or use int8"
        )
    need_package(kind, setting)
    on_gpu = device.type == "cuda"
    if kind == "fp8" and not (on_gpu and torch.cuda.get_device_capability(device) >= FP8_CAPABILITY):
        raise UserError(f"{setting}=fp8 needs a GPU of the Ada or Hopper generation or newer: use int8")


def need_package(kind: str, setting: str) -> None:
    """Refuse a setting whose package is not installed.

    Raises:
        UserError: saying what to install.
    """
    package = "bitsandbytes" if kind == "nf4" else "torchao"
    if importlib.util.find_spec(package) is None:
        raise UserError(f"{setting}={kind} needs {package}: {EXTRA}")


def quantise(module: nn.Module, kind: str, device: torch.device, chosen: Chosen) -> None:
    """Quantise linear maps of a module in place, and bring them to a device one by one.

    Args:
        module: see :func:`check_quantising` first.
        kind: int8_weights, int8, fp8 or nf4.
        device: where its maps are to be; the others stay where they are.
        chosen: which maps.
    """

    def wanted(name: str, part: nn.Module) -> bool:
        return isinstance(part, nn.Linear) and chosen(name, part)

    (quantise_to_4_bits if kind == "nf4" else quantise_to_8_bits)(module, kind, device, wanted)


def quantise_to_8_bits(module: nn.Module, kind: str, device: torch.device, wanted: Chosen) -> None:
    """By torchao: weights in 8 bits a channel of the output; activations too for int8 and fp8, a row each."""
    from torchao.quantization import (
        Float8DynamicActivationFloat8WeightConfig,
        Int8DynamicActivationInt8WeightConfig,
        Int8WeightOnlyConfig,
        PerRow,
        quantize_,
    )

    # Not with torchao's own settings of the compiler, which would hold for all that the process compiles from here on.
    if kind == "fp8":
        config: Any = Float8DynamicActivationFloat8WeightConfig(granularity=PerRow(), set_inductor_config=False)
    elif kind == "int8_weights":
        config = Int8WeightOnlyConfig(set_inductor_config=False)
    else:
        config = Int8DynamicActivationInt8WeightConfig(set_inductor_config=False)
    quantize_(module, config, filter_fn=lambda part, name: wanted(name, part), device=device)


def quantise_to_4_bits(module: nn.Module, kind: str, device: torch.device, wanted: Chosen) -> None:
    """By bitsandbytes: NF4 (arXiv 2305.14314), blocks of 64 weights, their scales quantised too."""
    import bitsandbytes as bnb

    matrices = [(name, part) for name, part in module.named_modules() if wanted(name, part)]
    for name, linear in matrices:
        assert isinstance(linear, nn.Linear)
        small = bnb.nn.LinearNF4(
            linear.in_features,
            linear.out_features,
            bias=linear.bias is not None,
            compute_dtype=linear.weight.dtype,
            device="meta",
        )
        small.weight = bnb.nn.Params4bit(linear.weight.detach(), requires_grad=False, quant_type="nf4")
        if linear.bias is not None:
            small.bias = linear.bias
        owner, _, leaf = name.rpartition(".")
        setattr(module.get_submodule(owner), leaf, small.to(device))  # moving it there quantises it

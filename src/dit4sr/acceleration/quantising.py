"""Approximate: the blocks' matrices in 8 bits (torchao) or in 4 (bitsandbytes). Both are optional packages."""

from __future__ import annotations

import importlib.util
from typing import Any

import torch
from torch import nn

from dit4sr.errors import UserError

EXTRA = "pip install 'dit4sr[quantise]'"

FP8_CAPABILITY = (8, 9)
"""Compute capability from which matrices are multiplied in 8-bit floats."""


def check_quantising(kind: str, device: torch.device, dtype: torch.dtype) -> None:
    """Refuse what cannot be quantised here, before any weight is touched.

    Args:
        kind: int8_weights, int8, fp8 or nf4.
        device: where the network is.
        dtype: of its weights.

    Raises:
        UserError: where the package or the GPU's kind is missing, or the weights have another type than is needed.
    """
    if kind == "fp8" and dtype != torch.bfloat16:  # scales a row each are torchao's for this type alone
        raise UserError(
            f"acceleration.quantise=fp8 needs weights in bfloat16, these are {str(dtype).removeprefix('torch.')}: "
            "set acceleration.network_dtype=bfloat16, or use int8"
        )
    need("bitsandbytes" if kind == "nf4" else "torchao", f"acceleration.quantise={kind}")
    on_gpu = device.type == "cuda"
    if kind == "fp8" and not (on_gpu and torch.cuda.get_device_capability(device) >= FP8_CAPABILITY):
        raise UserError("acceleration.quantise=fp8 needs a GPU of the Ada or Hopper generation or newer: use int8")


def quantise(network: nn.Module, kind: str, device: torch.device) -> None:
    """Quantise the linear maps of the blocks, in place; modulations, embeddings and the output map stay as they are.

    Args:
        network: a :class:`FastNetwork` on its device; see :func:`check_quantising` first.
        kind: int8_weights, int8, fp8 or nf4.
        device: where it is.
    """
    (quantise_to_4_bits if kind == "nf4" else quantise_to_8_bits)(network, kind, device)


def is_block_matrix(name: str, module: nn.Module) -> bool:
    """Whether a module is a matrix of a block (nine tenths of the work)."""
    return isinstance(module, nn.Linear) and ".blocks." in f".{name}"


def quantise_to_8_bits(network: nn.Module, kind: str, device: torch.device) -> None:
    """By torchao: weights in 8 bits a channel of the output; activations too for int8 and fp8, a row each."""
    from torchao.quantization import (
        Float8DynamicActivationFloat8WeightConfig,
        Int8DynamicActivationInt8WeightConfig,
        Int8WeightOnlyConfig,
        PerRow,
        quantize_,
    )

    if kind == "fp8":
        config: Any = Float8DynamicActivationFloat8WeightConfig(granularity=PerRow())
    else:
        config = Int8WeightOnlyConfig() if kind == "int8_weights" else Int8DynamicActivationInt8WeightConfig()
    quantize_(network, config, filter_fn=lambda module, name: is_block_matrix(name, module))


def quantise_to_4_bits(network: nn.Module, kind: str, device: torch.device) -> None:
    """By bitsandbytes: NF4 (arXiv 2305.14314), blocks of 64 weights, their scales quantised too."""
    import bitsandbytes as bnb

    matrices = [(name, module) for name, module in network.named_modules() if is_block_matrix(name, module)]
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
        setattr(network.get_submodule(owner), leaf, small.to(device))  # moving it there quantises it


def need(package: str, setting: str) -> None:
    """Refuse a setting whose package is not installed.

    Raises:
        UserError: saying what to install.
    """
    if importlib.util.find_spec(package) is None:
        raise UserError(f"{setting} needs {package}: {EXTRA}")

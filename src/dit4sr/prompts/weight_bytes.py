"""Bytes that a model's weights will take in memory, from the headers of its files."""

from __future__ import annotations

import json
import math
from pathlib import Path

import torch

from dit4sr.errors import UserError
from dit4sr.tensor_files import StoredTensor, read_header

FLOATING = ("F64", "F32", "F16", "BF16")


def loaded_bytes(folder: Path, dtype: torch.dtype | None, wide: str = "", bits: float | None = None) -> int:
    """Bytes that transformers' ``from_pretrained`` makes of a folder's weights.

    A file that cannot be read counts with its size: loading says what is wrong with it.

    Args:
        folder: one model's, in transformers' layout.
        dtype: that floating-point weights get; None for their files'.
        wide: name of modules that transformers keeps in float32 where the others are in float16; of T5 ``wo``,
            whose results may exceed float16's range.
        bits: of each weight of the matrices of a T5's blocks where they are quantised.
    """
    total = 0
    for path in weight_files(folder):
        try:
            total += sum(_bytes_of(name, tensor, dtype, wide, bits) for name, tensor in read_header(path).items())
        except UserError:
            total += path.stat().st_size
    return total


def weight_files(folder: Path) -> list[Path]:
    """The files that transformers reads there: other variants may lie beside them."""
    whole, index = folder / "model.safetensors", folder / "model.safetensors.index.json"
    if whole.is_file():
        return [whole]
    try:
        names = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
        return [path for path in sorted(folder / name for name in names) if path.is_file()]
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        return sorted(folder.glob("*.safetensors"))


def _bytes_of(name: str, tensor: StoredTensor, dtype: torch.dtype | None, wide: str, bits: float | None) -> int:
    size = tensor.end - tensor.start
    if tensor.dtype not in FLOATING:
        return size
    if bits is not None and len(tensor.shape) == 2 and is_t5_matrix(name.removesuffix(".weight")):
        return int(math.prod(tensor.shape) * bits / 8)
    halved = tensor.dtype == "F16" if dtype is None else dtype == torch.float16
    if halved and wide in name.split("."):
        dtype = torch.float32
    return size if dtype is None else math.prod(tensor.shape) * dtype.itemsize


def is_t5_matrix(name: str) -> bool:
    """Whether a module of T5, by its name, is a matrix of a block: not an embedding."""
    return ".block." in f".{name}" and not name.endswith("relative_attention_bias")

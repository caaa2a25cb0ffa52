"""Bytes that a model's weights will take in memory, from the headers of its files."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import torch

FLOATING = ("F64", "F32", "F16", "BF16")
HEADER_LIMIT = 100 << 20
"""Bytes of the longest header that safetensors reads."""


def loaded_bytes(folder: Path, dtype: torch.dtype | None, wide: str = "") -> int:
    """Bytes that transformers' ``from_pretrained`` makes of a folder's weights.

    A file that cannot be read counts with its size: loading says what is wrong with it.

    Args:
        folder: one model's, in transformers' layout.
        dtype: that floating-point weights get; None for their files'.
        wide: name of modules that transformers keeps in float32 where the others are in float16; of T5 ``wo``,
            whose results may exceed float16's range.
    """
    total = 0
    for path in weight_files(folder):
        try:
            total += sum(_bytes_of(name, entry, dtype, wide) for name, entry in _header(path).items())
        except (OSError, ValueError, LookupError, TypeError, AttributeError):
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


def _header(path: Path) -> dict[str, Any]:
    with open(path, "rb") as file:
        size = int.from_bytes(file.read(8), "little")
        if size > HEADER_LIMIT:
            raise ValueError("not a safetensors file")
        header: dict[str, Any] = json.loads(file.read(size))
    header.pop("__metadata__", None)
    return header


def _bytes_of(name: str, entry: dict[str, Any], dtype: torch.dtype | None, wide: str) -> int:
    stored, (first, last) = entry["dtype"], entry["data_offsets"]
    if stored not in FLOATING:
        return int(last - first)
    halved = stored == "F16" if dtype is None else dtype == torch.float16
    if halved and wide in name.split("."):
        dtype = torch.float32
    return int(last - first) if dtype is None else math.prod(entry["shape"]) * dtype.itemsize

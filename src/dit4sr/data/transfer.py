"""Batches and draws to a device, without the host waiting for it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

ON_THE_HOST = ("index", "source", "skipped", "dropped")
"""What of a batch is read by Python alone: sample numbers and the like. On a GPU, reading them would wait for it."""


def to_device(tensor: Tensor, device: torch.device, dtype: torch.dtype | None = None) -> Tensor:
    """A tensor on a device. To a GPU it is copied from pinned memory, so that the host goes on at once."""
    if device.type == "cuda" and tensor.device.type == "cpu":
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=device.type == "cuda").to(dtype or tensor.dtype)


def batch_to_device(batch: Mapping[str, Any], device: torch.device) -> dict[str, Any]:
    """A training batch with its tensors on a device, but for those that only the host reads."""
    return {name: value if name in ON_THE_HOST else _moved(value, device) for name, value in batch.items()}


def _moved(value: Any, device: torch.device) -> Any:
    if isinstance(value, Tensor):
        return to_device(value, device)
    if isinstance(value, Mapping):
        return {name: _moved(inner, device) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_moved(inner, device) for inner in value)
    return value

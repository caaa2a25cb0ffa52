"""Weights of two precisions in one network: a half-precision frozen base under float32 control weights."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

PLAIN = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
"""Types that are computed in as they are; quantised and 8-bit weights bring their own ways."""


def computing(device: torch.device, base: Any, control: Any) -> AbstractContextManager[object]:
    """The context in which a network computes: autocast to the base's dtype where its weights have two.

    Within a caller's own autocast nothing is changed.

    Args:
        device: of the inputs (offloaded weights may be elsewhere until they are used).
        base: any weight of the base.
        control: any control weight.
    """
    types = {base.dtype, control.dtype}
    if len(types) == 1 or not types <= set(PLAIN) or torch.is_autocast_enabled(device.type):
        return nullcontext()
    return torch.autocast(device.type, dtype=control.dtype if base.dtype == torch.float32 else base.dtype)


def as_weights(weight: Any, *inputs: Tensor | None) -> Any:
    """The inputs in the weights' dtype; as they are under autocast, which casts them operation by operation."""
    device = next(x.device for x in inputs if x is not None)
    # The meta device, on which FLOPs are counted, has no autocast to ask about.
    if weight.dtype not in PLAIN or (device.type != "meta" and torch.is_autocast_enabled(device.type)):
        return inputs
    return tuple(None if x is None else x.to(weight.dtype) for x in inputs)

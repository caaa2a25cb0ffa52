"""Which of torch's kernels computes attention."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

BACKENDS = {
    "cudnn": SDPBackend.CUDNN_ATTENTION,
    "flash": SDPBackend.FLASH_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
    "math": SDPBackend.MATH,
}

HOPPER = (9, 0)
"""Compute capability from which cuDNN's attention has kernels of the hardware's own matrix instructions."""


def attention_kernel(choice: str, device: torch.device) -> AbstractContextManager[object]:
    """The context in which attention is asked of one kernel first, and of the others where it cannot.

    Args:
        choice: a name of :data:`BACKENDS`, or ``auto``: cuDNN's on Hopper GPUs and newer, else torch's own choice.
        device: where it is computed.
    """
    if choice == "auto":
        if device.type != "cuda" or torch.cuda.get_device_capability(device) < HOPPER:
            return nullcontext()
        choice = "cudnn"
    first = BACKENDS[choice]
    return sdpa_kernel([first, *(backend for backend in BACKENDS.values() if backend != first)], set_priority=True)

"""Which of torch's kernels computes attention."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

BACKENDS = {
    "cudnn": SDPBackend.CUDNN_ATTENTION,
    "flash": SDPBackend.FLASH_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
    "math": SDPBackend.MATH,
}

CHOICES = ("auto", *BACKENDS)

HOPPER = (9, 0)
"""Compute capability from which cuDNN's attention has kernels of the hardware's own matrix instructions."""


@contextmanager
def attention_kernel(choice: str, device: torch.device) -> Iterator[None]:
    """The context in which attention is asked of one kernel first, and of the others where it cannot.

    Args:
        choice: of :data:`CHOICES`; ``auto``: cuDNN's on Hopper GPUs and newer, else torch's own choice.
        device: where it is computed.
    """
    if choice == "auto":
        if device.type != "cuda" or torch.cuda.get_device_capability(device) < HOPPER:
            yield
            return
        choice = "cudnn"
    first = BACKENDS[choice]
    order = [first, *(backend for backend in BACKENDS.values() if backend != first)]
    # Compiled code has the kernel in it, and torch's cache on disk would give that of any other.
    config = torch.compiler.config
    tag = f"{config.cache_key_tag} attention={choice}"
    with sdpa_kernel(order, set_priority=True), config.patch(cache_key_tag=tag):  # type: ignore[attr-defined]
        yield

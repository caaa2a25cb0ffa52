"""Single numbers back from a device, without the host waiting for it."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from typing import Generic, TypeVar, cast

import torch
from torch import Tensor

T = TypeVar("T")


class LateReads(Generic[T]):
    """Numbers of a device, read on the host some steps later, in order, without waiting for the device.

    ``float(tensor)`` waits until a GPU has done all that it was given. Here the number is copied to pinned memory
    behind the work that makes it, and handed out when it has arrived. On the CPU it is handed out at once.

    Args:
        at_most: numbers on their way; with more, the oldest is waited for, so that the host does not run far ahead.
    """

    def __init__(self, at_most: int = 2) -> None:
        self.at_most = at_most
        self._coming: deque[tuple[T, Tensor, torch.cuda.Event | None]] = deque()

    def add(self, tag: T, value: Tensor) -> None:
        """Ask for the number in a tensor of no dimension; ``tag`` comes back with it."""
        value, arrived = value.detach(), None
        if value.device.type == "cuda":
            host = torch.empty((), dtype=value.dtype, pin_memory=True)
            host.copy_(value, non_blocking=True)
            arrived = torch.cuda.Event()
            arrived.record()
            value = host
        self._coming.append((tag, value, arrived))

    def ready(self, *, wait: bool = False) -> Iterator[tuple[T, float]]:
        """Hand out what has arrived; with ``wait`` everything."""
        while self._coming:
            tag, value, arrived = self._coming[0]
            if arrived is not None:
                if wait or len(self._coming) > self.at_most:
                    arrived.synchronize()
                elif not arrived.query():
                    return
            self._coming.popleft()
            yield tag, cast(float, value.tolist())  # it is on the host

"""A step replayed from a CUDA graph: its hundreds of kernels are launched as one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

SIZES_KEPT = 8
"""Sizes whose graphs are kept; further ones are run kernel by kernel."""


class GraphedStep:
    """A network's step, recorded at its first call of each size and replayed from then on.

    What the step is given is copied into the tensors that the graph reads, and its result copied out of those that it
    writes, so a result stays what it is when the next step is replayed.

    Args:
        run: the step; its first four arguments are tensors or None, and change from call to call; the others are
            constant for a size, and kept alive with the graph.
    """

    def __init__(self, run: Callable[..., Tensor]) -> None:
        self.run = run
        self.stream: torch.cuda.Stream | None = None
        self.recorded: dict[Any, tuple[torch.cuda.CUDAGraph, list[Tensor | None], Tensor, tuple[Any, ...]]] = {}

    def forget(self) -> None:
        """Drop what was recorded: a graph holds the addresses of weights, and they have moved."""
        self.recorded.clear()

    def __call__(self, *arguments: Any) -> Tensor:
        changing, constant = arguments[:4], arguments[4:]
        key = (tuple(None if x is None else (*x.shape, x.dtype) for x in changing), constant[-1])
        # Not as inference tensors, which could not be written to outside of inference mode.
        with torch.inference_mode(False), torch.no_grad(), torch.cuda.device(changing[0].device):
            if key not in self.recorded:
                if len(self.recorded) >= SIZES_KEPT:
                    return self.run(*arguments)
                self.recorded[key] = self._record(changing, constant)
            graph, static, result, _ = self.recorded[key]
            for place, value in zip(static, changing, strict=True):
                if place is not None:
                    place.copy_(value)
            graph.replay()
            return result.clone()

    def _record(self, changing: tuple[Any, ...], constant: tuple[Any, ...]) -> Any:
        static = [None if x is None else x.clone() for x in changing]
        # Beside the current stream, as recording asks for: compilation, tuning and workspaces come first.
        aside = self.stream = self.stream or torch.cuda.Stream()
        aside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(aside):
            for _ in range(3):
                self.run(*static, *constant)
        torch.cuda.current_stream().wait_stream(aside)
        graph = torch.cuda.CUDAGraph()
        pool = next((recorded[0].pool() for recorded in self.recorded.values()), None)
        # cuBLAS's workspace of the stream is made anew within the graph's own memory, and nobody else's afterwards: the
        # warm-up's lies outside, where others may free it (torch.compile's own graphs do) while the graph still writes.
        torch._C._cuda_clearCublasWorkspaces()
        with torch.cuda.graph(graph, pool=pool, stream=aside):
            result = self.run(*static, *constant)
        torch._C._cuda_clearCublasWorkspaces()
        return graph, static, result, constant

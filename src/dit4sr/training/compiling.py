"""torch.compile for training: block by block, or the network as a whole."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from dit4sr.errors import UserError
from dit4sr.training.choices import COMPILED
from dit4sr.training.sharding import blocks_of


def compile_network(network: nn.Module, mode: Any, backend: str | Callable[..., Any] = "inductor") -> None:
    """Compile a network in place; parameters keep their names, and their values.

    Args:
        network: before or after it is moved to its device; nothing is compiled until it is called.
        mode: one of :data:`COMPILED`, or False.
        backend: of torch.compile.

    Raises:
        UserError: another mode, or no compiler for what would run on the CPU.
    """
    if mode is False or mode is None:
        return
    if mode not in COMPILED:
        raise UserError(f"training.compile={mode}: choose false, blocks or network")
    if not torch.cuda.is_available() and not any(shutil.which(name) for name in ("g++", "clang++")):
        raise UserError(f"training.compile={mode} needs a C++ compiler on the CPU: install g++, or set it to false")
    for module in [network] if mode == "network" else blocks_of(network):
        module.compile(dynamic=False, backend=backend)


@contextmanager
def as_written() -> Iterator[None]:
    """Within the block compiled networks run as they are written: other sizes and modes would be compiled anew."""
    with torch.compiler.set_stance("force_eager"):
        yield

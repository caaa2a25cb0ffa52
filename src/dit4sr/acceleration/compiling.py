"""torch.compile of a network's blocks, or of its whole step; what is compiled is kept on disk for the next process."""

from __future__ import annotations

import importlib.util
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch._inductor.runtime.cache_dir_utils import default_cache_dir

from dit4sr.acceleration.settings import AccelerationSettings
from dit4sr.errors import UserError

GRAPH_MODES = ("reduce-overhead", "max-autotune")
"""Modes of torch.compile that record CUDA graphs."""

VERSIONS = 64
"""So many versions of one piece of code a network may need: kinds of blocks × sizes of latents and batches."""

CACHE_VARIABLE = "TORCHINDUCTOR_CACHE_DIR"


def cache_folder() -> Path:
    """Where compiled code is kept between processes: TORCHINDUCTOR_CACHE_DIR, else a folder in the user's cache."""
    # Torch sets the variable itself, to a folder that is lost at the next start, when some library asks for it first.
    if os.environ.get(CACHE_VARIABLE) in (None, default_cache_dir()):
        base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        os.environ[CACHE_VARIABLE] = str(base / "dit4sr" / "inductor")
    return Path(os.environ[CACHE_VARIABLE])


def check_compiler(device: torch.device) -> None:
    """Refuse to compile where there is nothing to compile with.

    Raises:
        UserError: saying what is missing.
    """
    if device.type == "cpu" and not any(shutil.which(name) for name in (os.environ.get("CXX", "g++"), "clang++")):
        raise UserError("acceleration.compile needs a C++ compiler (g++) on the CPU: install one, or compile=none")
    if device.type == "cuda" and importlib.util.find_spec("triton") is None:
        raise UserError("acceleration.compile needs Triton on a GPU: pip install triton, or acceleration=exact")
    if device.type == "cuda" and not any(shutil.which(name) for name in (os.environ.get("CC", "gcc"), "clang")):
        raise UserError("acceleration.compile needs a C compiler (gcc) for Triton: install one, or acceleration=exact")


def check_options(options: Mapping[str, Any]) -> None:
    """Refuse options that torch.compile does not have.

    Raises:
        UserError: naming them.
    """
    if not options:
        return
    from torch._inductor import list_options

    if unknown := sorted(set(options) - set(list_options())):
        raise UserError(
            f"acceleration.compile_options: this torch has no {', '.join(map(str, unknown))}; "
            "torch._inductor.list_options() names those that it has"
        )


def compile_network(network: Any, settings: AccelerationSettings) -> None:
    """Have a :class:`FastNetwork` compiled on its first call at each size.

    Sizes are compiled for one by one (``dynamic=False``): restoration asks for few, a tile's and those of small
    photos. The timestep travels as a tensor and the injection's s as well, so that no step is compiled for.

    Args:
        network: the network, which is changed; see :func:`check_compiler` first.
        settings: ``compile``, ``compile_mode`` and ``compile_options``.
    """
    cache_folder().mkdir(parents=True, exist_ok=True)
    # Torch counts the versions of a piece of code over all networks of the process, and raises at its limit.
    torch._dynamo.config.recompile_limit += VERSIONS
    torch._dynamo.config.accumulated_recompile_limit += VERSIONS
    how: dict[str, Any] = {"dynamic": False, "fullgraph": True}
    how |= {"options": dict(settings.compile_options)} if settings.compile_options else {"mode": settings.compile_mode}
    if settings.compile == "step":
        network.run = torch.compile(network._run, **how)
        return
    for trunk in network.trunks:
        for block in trunk.blocks:
            block.compile(**how)


def records_graphs(settings: AccelerationSettings, device: torch.device) -> bool:
    """Whether steps are replayed from CUDA graphs, whose output the next replay overwrites."""
    return device.type == "cuda" and settings.compile == "step" and settings.compile_mode in GRAPH_MODES

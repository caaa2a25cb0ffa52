"""Networks: the LR stream as data (:class:`LRStreamSpec`), DiT4SR and variants, the ControlNet baseline."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dit4sr.models.base import load_pretrained_base
    from dit4sr.models.controlnet import SD3ControlNet
    from dit4sr.models.dit4sr import DiT4SRTransformer2DModel
    from dit4sr.models.released import load_released
    from dit4sr.models.spec import LRStreamSpec

_MODULES = {
    "DiT4SRTransformer2DModel": "dit4sr",
    "LRStreamSpec": "spec",
    "SD3ControlNet": "controlnet",
    "load_pretrained_base": "base",
    "load_released": "released",
}

__all__ = ["DiT4SRTransformer2DModel", "LRStreamSpec", "SD3ControlNet", "load_pretrained_base", "load_released"]


def __getattr__(name: str) -> Any:
    """Import a public name at its first use: networks need torch and diffusers, which take seconds; a spec does not."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)

"""Second-order degradation of photos, the source of the low-quality training inputs."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dit4sr.data.degradations.device import degrade_batch
    from dit4sr.data.degradations.parameters import DegradationParameters, draw_parameters
    from dit4sr.data.degradations.presets import PRESETS, DegradationPreset, load_preset
    from dit4sr.data.degradations.worker import degrade

_MODULES = {
    "PRESETS": "presets",
    "DegradationParameters": "parameters",
    "DegradationPreset": "presets",
    "degrade": "worker",
    "degrade_batch": "device",
    "draw_parameters": "parameters",
    "load_preset": "presets",
}

__all__ = [
    "PRESETS",
    "DegradationParameters",
    "DegradationPreset",
    "degrade",
    "degrade_batch",
    "draw_parameters",
    "load_preset",
]


def __getattr__(name: str) -> Any:
    """Import a public name at its first use: ``degrade_batch`` needs torch, which takes seconds, and presets do not."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)

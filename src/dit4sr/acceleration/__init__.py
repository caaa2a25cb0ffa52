"""Faster inference: exact rearrangements of trained networks, compilation, and optional approximations."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from dit4sr.acceleration.settings import AccelerationSettings

if TYPE_CHECKING:
    from dit4sr.acceleration.build import accelerate

__all__ = ["AccelerationSettings", "accelerate"]


def __getattr__(name: str) -> Any:
    """``accelerate`` when it is asked for: it imports torch, which checking the settings does not need."""
    if name == "accelerate":
        from dit4sr.acceleration.build import accelerate

        return accelerate
    raise AttributeError(name)

"""The project's own configs, as plain values."""

from __future__ import annotations

from typing import Any

from omegaconf import OmegaConf

from dit4sr.config import config_dir


def named(group: str, name: str) -> dict[str, Any]:
    """A file of configs/<group>."""
    return OmegaConf.to_container(OmegaConf.load(config_dir() / group / f"{name}.yaml"), resolve=True)  # type: ignore[return-value]

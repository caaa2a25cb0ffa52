"""The published sampling, read from the configs where it is stated."""

from __future__ import annotations

from typing import Any

from dit4sr.config import config_dir

PUBLISHED = "sd35_medium"


def published_sampler() -> dict[str, Any]:
    """configs/sampler of the published model."""
    return _group("sampler")


def published_tile() -> dict[str, int]:
    """The published model's latent tiles: size and overlap."""
    return _group("backbone")["tile"]


def _group(name: str) -> dict[str, Any]:
    from omegaconf import OmegaConf

    # Not resolved as a whole: other entries read the environment.
    config = OmegaConf.load(config_dir() / name / f"{PUBLISHED}.yaml")
    return OmegaConf.to_container(config)  # type: ignore[return-value]

"""The settings of `prepare`, checked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dit4sr.data.degradations import DegradationPreset
from dit4sr.errors import UserError

EMBEDDED = "embedded"


@dataclass(frozen=True)
class PrepareSettings:
    """What the content of a prepared folder follows from, besides the photos' own bytes.

    ``source`` is "embedded" or an absolute folder; sizes are in pixels.
    """

    source: str
    patch: int
    patches_per_photo: int
    scales: tuple[float, ...]
    samples_per_shard: int
    held_out: float
    benchmark_crop: int
    seed: int
    degradation: DegradationPreset

    @classmethod
    def from_config(cls, cfg: Mapping[str, Any]) -> PrepareSettings:
        """Take the settings from the composed ``prepare.yaml``.

        Raises:
            UserError: a value is of another kind, or out of range.
        """
        source, scales = str(cfg["source"]), cfg["scales"]
        is_list = isinstance(scales, Sequence) and not isinstance(scales, str)
        if not is_list or not scales or not all(_within(scale, 0, 1) and scale for scale in scales):
            raise UserError(f"scales={scales} must be a list of numbers in (0, 1].")
        if not _within(cfg["held_out"], 0, 1) or cfg["held_out"] == 1:
            raise UserError(f"held_out={cfg['held_out']} must be in [0, 1).")
        settings = cls(
            source=source if source == EMBEDDED else str(Path(source).expanduser().resolve()),
            patch=_whole(cfg, "patch", 1),
            patches_per_photo=_whole(cfg, "patches_per_photo", 1),
            scales=tuple(float(scale) for scale in scales),
            samples_per_shard=_whole(cfg, "samples_per_shard", 1),
            held_out=float(cfg["held_out"]),
            benchmark_crop=_whole(cfg, "benchmark_crop", 4),
            seed=_whole(cfg, "seed", 0),
            degradation=DegradationPreset.from_config(cfg["degradation"]),
        )
        if settings.benchmark_crop % 4:
            raise UserError(f"benchmark_crop={settings.benchmark_crop} must be a multiple of 4.")
        return settings


def _whole(cfg: Mapping[str, Any], name: str, low: int) -> int:
    value = cfg[name]
    if not isinstance(value, int) or isinstance(value, bool) or value < low:
        raise UserError(f"{name}={value} must be a whole number of at least {low}.")
    return value


def _within(value: Any, low: float, high: float) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and low <= value <= high

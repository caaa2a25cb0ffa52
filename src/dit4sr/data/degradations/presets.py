"""Degradation settings as data: one frozen preset a YAML file of `configs/degradation`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, dataclass, fields
from functools import cache
from typing import Any

import yaml

from dit4sr.config import config_dir
from dit4sr.errors import UserError

Range = tuple[float, float]

KERNEL_FAMILIES = ("iso", "aniso", "generalized_iso", "generalized_aniso", "plateau_iso", "plateau_aniso")
RESIZE_MODES = ("area", "bilinear", "bicubic")
MAX_KERNEL_SIZE = 21


@dataclass(frozen=True)
class DegradationPreset:
    """Settings of the second-order pipeline of Real-ESRGAN (arXiv 2107.10833, section 3).

    Field names are those of the published option files. Ranges are (low, high), both inclusive; sigmas of the
    noise are on the 0..255 scale, those of the blur in pixels; `resize_prob` is (up, down, keep); a name that
    ends in 2 belongs to the second order. There are no defaults: every YAML file states every field.
    """

    name: str
    usm_sharpen: bool
    kernel_sizes: tuple[int, ...]
    kernel_families: tuple[str, ...]
    kernel_probs: tuple[float, ...]
    resize_modes: tuple[str, ...]
    blur_sigma: Range
    betag_range: Range
    betap_range: Range
    sinc_prob: float
    resize_prob: tuple[float, float, float]
    resize_range: Range
    gaussian_noise_prob: float
    noise_range: Range
    poisson_scale_range: Range
    gray_noise_prob: float
    jpeg_range: Range
    second_blur_prob: float
    blur_sigma2: Range
    betag_range2: Range
    betap_range2: Range
    sinc_prob2: float
    resize_prob2: tuple[float, float, float]
    resize_range2: Range
    gaussian_noise_prob2: float
    noise_range2: Range
    poisson_scale_range2: Range
    gray_noise_prob2: float
    jpeg_range2: Range
    final_sinc_prob: float

    @classmethod
    def from_config(cls, mapping: Mapping[str, Any]) -> DegradationPreset:
        """Build a preset from a mapping (a dict or an OmegaConf node) that holds every field and no other.

        Raises:
            UserError: a field is missing, unknown or out of range; the message names it.
        """
        known = [field.name for field in fields(cls) if field.default is MISSING]
        given = [str(key) for key in mapping]
        missing = [key for key in known if key not in given]
        unknown = [key for key in given if key not in known]
        if missing or unknown:
            parts = [f"missing {', '.join(missing)}"] * bool(missing)
            parts += [f"unknown {', '.join(unknown)}"] * bool(unknown)
            raise UserError(
                f"degradation preset: {'; '.join(parts)}. "
                "State every field, and no other, as configs/degradation/dit4sr.yaml does."
            )
        return cls(**{key: _frozen(mapping[key]) for key in known})

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if problem := _problem(field.name, str(field.type), value):
                raise UserError(f"degradation preset {self.name!r}: {field.name}={value!r} {problem}.")
        if len(self.kernel_probs) != len(self.kernel_families):
            raise UserError(
                f"degradation preset {self.name!r}: kernel_probs needs one value for each of kernel_families."
            )


def _frozen(value: Any) -> Any:
    if isinstance(value, str | bytes) or not hasattr(value, "__iter__"):
        return value
    return tuple(value)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _problem(name: str, kind: str, value: Any) -> str | None:
    """Say what is wrong with the field's value, or None. `kind` is the field's annotation."""
    if kind in ("str", "bool"):
        return None if type(value).__name__ == kind else f"must be a {kind}"
    if kind == "float":
        return None if _is_number(value) and 0 <= value <= 1 else "must be a probability in [0, 1]"
    if not isinstance(value, tuple) or not value:
        return "must be a list"
    if kind == "tuple[str, ...]":
        allowed = RESIZE_MODES if name == "resize_modes" else KERNEL_FAMILIES
        return None if set(value) <= set(allowed) else f"must be taken from {', '.join(allowed)}"
    if not all(_is_number(v) for v in value):
        return "must be a list of numbers"
    if kind == "tuple[int, ...]":
        good = all(v == int(v) and v % 2 == 1 and 3 <= v <= MAX_KERNEL_SIZE for v in value)
        return None if good else f"must be odd kernel sizes from 3 to {MAX_KERNEL_SIZE}"
    if kind == "Range":
        if len(value) != 2 or not 0 <= value[0] <= value[1]:
            return "must be two numbers, low <= high, not negative"
        return _range_problem(name, value)
    if name.startswith("resize_prob") and len(value) != 3:
        return "must be the probabilities of up, down and keep"
    return None if min(value) >= 0 and abs(sum(value) - 1) < 1e-6 else "must be probabilities that sum to 1"


def _range_problem(name: str, value: Range) -> str | None:
    low, high = value
    if name.startswith("jpeg") and not 1 <= low <= high <= 100:
        return "must be JPEG qualities from 1 to 100"
    if name.startswith("resize") and not 0 < low <= 1 <= high:
        return "must be scale factors with 0 < low <= 1 <= high"
    if name.startswith("beta") and not 0 < low <= 1 <= high:
        return "must be shapes with 0 < low <= 1 <= high"
    if name.startswith("blur") and low <= 0:
        return "must be sigmas above 0"
    return None


def preset_names() -> tuple[str, ...]:
    """Names of the presets of `configs/degradation`, sorted."""
    return tuple(sorted(path.stem for path in (config_dir() / "degradation").glob("*.yaml")))


PRESETS = preset_names()


@cache
def load_preset(name: str) -> DegradationPreset:
    """Load `configs/degradation/<name>.yaml`.

    Raises:
        UserError: there is no such file, or it does not state a valid preset.
    """
    if name not in preset_names():
        raise UserError(f"unknown degradation {name!r}: choose one of {', '.join(preset_names())}.")
    with open(config_dir() / "degradation" / f"{name}.yaml", encoding="utf-8") as file:
        return DegradationPreset.from_config(yaml.safe_load(file))


def as_preset(preset: str | DegradationPreset) -> DegradationPreset:
    """Return a preset given itself or its name."""
    return load_preset(preset) if isinstance(preset, str) else preset

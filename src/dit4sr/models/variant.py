"""The config group ``model`` as data: what a file of configs/model states. Nothing heavy is imported."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from dit4sr.errors import UserError
from dit4sr.models.spec import SPEC_PREFIX, LRStreamSpec

SPEC_FIELDS = tuple(SPEC_PREFIX + f.name for f in fields(LRStreamSpec))
MODEL_FIELDS = {"dit4sr": ("name", "network", *SPEC_FIELDS), "sd3_controlnet": ("name", "network")}
"""What configs/model/*.yaml states, by network."""


def check_model_config(model: Mapping[str, Any]) -> None:
    """Refuse a model config that misses a field or has one too many.

    Raises:
        UserError: naming the fields.
    """
    network = model.get("network")
    if network not in MODEL_FIELDS:
        raise UserError(f"model.network={network!r}: choose one of {', '.join(MODEL_FIELDS)}")
    expected = set(MODEL_FIELDS[network])
    missing, unknown = sorted(expected - set(model)), sorted(set(model) - expected)
    if missing or unknown:
        raise UserError(
            f"model {model.get('name')!r}: "
            + "; ".join(
                f"{word} {', '.join(names)}" for word, names in (("missing", missing), ("unknown", unknown)) if names
            )
            + f"; a model of network {network} states {', '.join(MODEL_FIELDS[network])}"
        )


def spec_of(model: Mapping[str, Any]) -> LRStreamSpec:
    """The LR stream's specification that a model config states.

    Raises:
        UserError: for a combination that makes no sense.
    """
    check_model_config(model)
    try:
        return LRStreamSpec(**{name.removeprefix(SPEC_PREFIX): model[name] for name in SPEC_FIELDS})
    except ValueError as error:
        raise UserError(f"model {model['name']}: {error}") from error


def differing_fields(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> list[str]:
    """``field: ours ≠ theirs`` for each field (names aside) in which two model configs differ."""
    names = sorted((set(ours) | set(theirs)) - {"name"})
    return [f"{n}: {ours.get(n)} ≠ {theirs.get(n)}" for n in names if ours.get(n) != theirs.get(n)]

"""Checking the plain values of a config: a number that is none is one clear line, not a traceback."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from dit4sr.errors import UserError


def whole_number(config: Mapping[str, Any], name: str, least: int | None = None) -> int:
    """The whole number of that name.

    Raises:
        UserError: it is another kind of value, or below ``least``.
    """
    value = config[name]
    if not isinstance(value, int) or isinstance(value, bool) or (least is not None and value < least):
        raise UserError(f"{name}={value}: give a whole number" + ("" if least is None else f" of at least {least}"))
    return value


def number(config: Mapping[str, Any], name: str, least: float = -math.inf) -> float:
    """The finite number of that name.

    Raises:
        UserError: it is another kind of value, infinite, or below ``least``.
    """
    value = config[name]
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if not is_number or not math.isfinite(value) or value < least:
        raise UserError(f"{name}={value}: give a number" + ("" if least == -math.inf else f" of at least {least:g}"))
    return value


def flag(config: Mapping[str, Any], name: str) -> bool:
    """The truth value of that name.

    Raises:
        UserError: it is another kind of value.
    """
    value = config[name]
    if not isinstance(value, bool):
        raise UserError(f"{name}={value}: give true or false")
    return value

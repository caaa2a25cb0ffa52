"""Checking the plain values of a config: a number that is none is one clear line, not a traceback."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from dit4sr.errors import UserError


def whole_number(config: Mapping[str, Any], name: str, least: int | None = None, most: int | None = None) -> int:
    """The whole number of that name.

    Raises:
        UserError: it is another kind of value, below ``least`` or above ``most``.
    """
    value = config[name]
    is_whole = isinstance(value, int) and not isinstance(value, bool)
    if not is_whole or (least is not None and value < least) or (most is not None and value > most):
        raise UserError(f"{name}={shown(value)}: give a whole number{_between(least, most)}")
    return value


def number(config: Mapping[str, Any], name: str, least: float = -math.inf, most: float = math.inf) -> float:
    """The finite number of that name.

    Raises:
        UserError: it is another kind of value, infinite, below ``least`` or above ``most``.
    """
    value = config[name]
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if not is_number or not math.isfinite(value) or not least <= value <= most:
        low, high = (None if math.isinf(bound) else bound for bound in (least, most))
        raise UserError(f"{name}={shown(value)}: give a number{_between(low, high)}")
    return value


def _between(least: float | None, most: float | None) -> str:
    if least is None:
        return "" if most is None else f" of at most {most:.15g}"
    return f" of at least {least:.15g}" if most is None else f" from {least:.15g} to {most:.15g}"


def one_of(config: Mapping[str, Any], name: str, options: Sequence[str]) -> str:
    """The value of that name, one of ``options``.

    Raises:
        UserError: it is another one.
    """
    value = config[name]
    if not isinstance(value, str) or value not in options:
        raise UserError(f"{name}={shown(value)}: choose one of {', '.join(options)}")
    return value


def text(config: Mapping[str, Any], name: str) -> str:
    """The text of that name, which may read as a number.

    Raises:
        UserError: it is empty, or another kind of value.
    """
    value = config[name]
    if value is None or value == "" or isinstance(value, bool | Mapping | list):
        raise UserError(f"{name}={shown(value)}: give a text")
    return str(value)


def shown(value: Any) -> str:
    """A value as a command line has it: null, true and false as YAML writes them."""
    if value is None:
        return "null"
    return str(value).lower() if isinstance(value, bool) else str(value)


def flag(config: Mapping[str, Any], name: str) -> bool:
    """The truth value of that name.

    Raises:
        UserError: it is another kind of value.
    """
    value = config[name]
    if not isinstance(value, bool):
        raise UserError(f"{name}={shown(value)}: give true or false")
    return value

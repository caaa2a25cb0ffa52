"""Whether there is any network to load, told without importing torch."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dit4sr.errors import UserError


def check_any_network(config: Mapping[str, Any]) -> None:
    """Refuse an empty ``ckpt`` or ``weights``, and having neither where no run has left a checkpoint.

    Args:
        config: of a verb that loads a network, as plain values.

    Raises:
        UserError: saying what to give.
    """
    for name in ("ckpt", "weights"):
        if config[name] is not None and not str(config[name]).strip():
            raise UserError(f"{name}= is empty: give a path, or leave {name}= out")
    if config["ckpt"] is not None or config["weights"] is not None:
        return
    outputs, model = Path(config["paths"]["outputs"]), config["model"]["name"]
    if next(outputs.glob("**/checkpoints/last.ckpt"), None) is None:
        raise none_of(f"model={model}", outputs)


def none_at(path: object) -> UserError:
    """What is said of a checkpoint that is not there."""
    return UserError(f"no checkpoint at {path}: train one (python train.py) or give its path (ckpt=…)")


def none_of(asked: str, outputs: Path, there: str = "") -> UserError:
    """What is said where no run has left a checkpoint.

    Args:
        asked: the settings that it should have, such as ``model=variant_b``.
        outputs: where it was looked for.
        there: what was found instead.
    """
    return UserError(
        f"no checkpoint of {asked} under {outputs}{there}: train one (python train.py {asked}) or give ckpt=…"
    )

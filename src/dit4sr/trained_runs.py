"""Which of the runs' checkpoints a verb takes, told without importing torch."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import yaml

from dit4sr.errors import UserError


def checkpoint_of(config: Mapping[str, Any], explicit: Collection[str]) -> Path:
    """The checkpoint ``ckpt``, else the newest of the model, and of the backbone if the command line names one.

    Args:
        config: of a verb that loads a network, as plain values.
        explicit: names of the settings that the command line set.

    Raises:
        UserError: where there is none of them.
    """
    if config["ckpt"] is not None:
        return checkpoint_file(Path(config["ckpt"]).expanduser())
    backbone = config["backbone"]["name"] if "backbone" in explicit else None
    return newest_checkpoint(Path(config["paths"]["outputs"]), config["model"]["name"], backbone)


def checkpoint_file(path: Path) -> Path:
    """The checkpoint itself, or the last one of a run's folder."""
    last = path / "checkpoints" / "last.ckpt"
    return last if last.exists() else path


def newest_checkpoint(outputs: Path, model: str, backbone: str | None = None) -> Path:
    """The newest ``checkpoints/last.ckpt`` under ``outputs`` whose run trained ``model``.

    Args:
        outputs: a folder with run folders, at any depth.
        model: name of the model.
        backbone: name of the backbone too; None takes any.

    Raises:
        UserError: where there is none, saying what there is.
    """
    found = [path for path in outputs.glob("**/checkpoints/last.ckpt") if path.exists()]  # links may lead nowhere
    others: list[str] = []
    for path in sorted(found, key=lambda p: p.stat().st_mtime, reverse=True):
        trained = trained_by(path.parent.parent)
        if trained is None:
            continue
        if trained[0] == model and backbone in (None, trained[1]):
            return path
        others.append(f"model={trained[0]} backbone={trained[1]}")
    asked = f"model={model}" + (f" backbone={backbone}" if backbone else "")
    there = f" (there are {', '.join(dict.fromkeys(others))})" if others else ""
    raise UserError(
        f"no checkpoint of {asked} under {outputs}{there}: train one (python train.py {asked}) or give ckpt=…"
    )


def trained_by(run: Path) -> tuple[str, str] | None:
    """Names of the model and of the backbone that a run's config.yaml states; None where it is missing or broken."""
    try:
        config = yaml.safe_load((run / "config.yaml").read_text(encoding="utf-8"))
        return str(config["model"]["name"]), str(config["backbone"]["name"])
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError, yaml.YAMLError):
        return None


def check_any_network(config: Mapping[str, Any], explicit: Collection[str]) -> None:
    """Refuse an empty ``ckpt`` or ``weights``, and having neither where no run has left a checkpoint of the model.

    Args:
        config: of a verb that loads a network, as plain values.
        explicit: names of the settings that the command line set.

    Raises:
        UserError: saying what to give.
    """
    for name in ("ckpt", "weights"):
        if config[name] is not None and not str(config[name]).strip():
            raise UserError(f"{name}= is empty: give a path, or leave {name}= out")
    if config["ckpt"] is None and config["weights"] is None:
        checkpoint_of(config, explicit)


def none_at(path: object) -> UserError:
    """What is said of a checkpoint that is not there."""
    return UserError(f"no checkpoint at {path}: train one (python train.py) or give its path (ckpt=…)")

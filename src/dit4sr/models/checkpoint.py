"""Training checkpoints: finding them, reading them without unpickling, and refusing those of another model."""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from dit4sr.errors import UserError
from dit4sr.models.build import Network, build_network, differing_fields

IDENTITY = ("model", "backbone", "training", "degradation", "sampler", "data", "seed")
"""The parts of a run's config that its checkpoints carry."""


@dataclass(frozen=True)
class TrainedModel:
    """A network read from a checkpoint.

    Attributes:
        network: with the averaged (EMA) weights, in evaluation mode.
        config: the run's config, the parts named in :data:`IDENTITY`.
        step: number of optimiser steps it was trained for.
        path: the checkpoint.
    """

    network: Network
    config: dict[str, Any]
    step: int
    path: Path


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Read a checkpoint's tensors and plain values; nothing else in it is executed or built.

    Raises:
        UserError: where there is none, or it is damaged, or is none of ours.
    """
    if not path.is_file():
        raise UserError(f"no checkpoint at {path}: train one (python train.py) or give its path (ckpt=…)")
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, OSError, ValueError, KeyError) as error:
        raise UserError(
            f"{path} cannot be read as a checkpoint (truncated, or holding more than tensors and plain values): "
            f"{str(error).splitlines()[0] if str(error) else type(error).__name__}"
        ) from error
    if not isinstance(checkpoint, dict) or "dit4sr" not in checkpoint or "ema" not in checkpoint:
        raise UserError(f"{path} is not a checkpoint of dit4sr: give one that train.py wrote (checkpoints/last.ckpt)")
    return checkpoint


def check_same_model(path: Path, saved: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    """Refuse a checkpoint of another model or backbone.

    Args:
        path: of the checkpoint, for the message.
        saved: the checkpoint's config.
        wanted: the config asked for, with ``model`` and ``backbone``.

    Raises:
        UserError: naming the fields that differ.
    """
    for part in ("model", "backbone"):
        ours, theirs = wanted[part], saved[part]
        if part == "backbone":
            ours, theirs = ours["transformer"], theirs["transformer"]
        if differences := differing_fields(ours, theirs):
            raise UserError(
                f"{path} is of {part}={saved[part]['name']}, not {part}={wanted[part]['name']} "
                f"({'; '.join(differences)}): ask for {part}={saved[part]['name']}, or give another checkpoint"
            )


def load_trained(path: str | Path, wanted: Mapping[str, Any] | None = None) -> TrainedModel:
    """Build the network that a checkpoint was trained as, with its averaged weights.

    Args:
        path: a file that train.py wrote.
        wanted: refuse the checkpoint unless its model and backbone are these.

    Raises:
        UserError: see :func:`read_checkpoint` and :func:`check_same_model`.
    """
    path = Path(path)
    checkpoint = read_checkpoint(path)
    config = checkpoint["dit4sr"]
    if wanted is not None:
        check_same_model(path, config, wanted)
    network = build_network(config["model"], config["backbone"], config["seed"])
    parameters = dict(network.named_parameters())
    trainable = {n for n, p in parameters.items() if p.requires_grad}
    if wrong := sorted(trainable ^ set(checkpoint["ema"])):
        raise UserError(f"{path} does not fit its own model: {', '.join(wrong[:5])} …; train it again")
    with torch.no_grad():
        for name, value in checkpoint["ema"].items():
            parameters[name].copy_(value)
    network.eval().requires_grad_(False)
    return TrainedModel(network, config, int(checkpoint["global_step"]), path)


def newest_checkpoint(outputs: Path, model: str) -> Path:
    """The newest ``checkpoints/last.ckpt`` under ``outputs`` whose run trained ``model``.

    Raises:
        UserError: where there is none.
    """
    from omegaconf import OmegaConf

    candidates = sorted(outputs.glob("**/checkpoints/last.ckpt"), key=lambda p: p.stat().st_mtime, reverse=True)
    for path in candidates:
        config = path.parent.parent / "config.yaml"
        if config.is_file() and OmegaConf.load(config).model.name == model:
            return path
    raise UserError(
        f"no checkpoint of {model} under {outputs}: train one (python train.py model={model}) or give ckpt=…"
    )

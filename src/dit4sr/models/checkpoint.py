"""Training checkpoints: finding them, reading them without unpickling, and refusing those of another model."""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from dit4sr.checkpoint_archive import INSTEAD, read_archive
from dit4sr.checkpoint_damage import damage
from dit4sr.errors import UserError
from dit4sr.models.base import base_identity, check_same_base, resolve_backbone
from dit4sr.models.build import Network, build_network
from dit4sr.models.variant import differing_fields
from dit4sr.sharded_files import INDEX, read_sharded
from dit4sr.trained_runs import none_at

IDENTITY = ("model", "backbone", "training", "degradation", "sampler", "data", "seed")
"""The parts of a run's config that its checkpoints carry; beside them, under ``base``, the frozen base's identity."""

BASE_VARIABLE = "DIT4SR_SD35"


@dataclass(frozen=True)
class TrainedModel:
    """A network read from a checkpoint, or from weights in diffusers' layout.

    Attributes:
        network: with the averaged (EMA) weights, in evaluation mode.
        config: the run's config, the parts named in :data:`IDENTITY`. Its ``backbone`` is that of the base that
            was found on this machine.
        step: number of optimiser steps it was trained for.
        path: the checkpoint.
        base: identity of the frozen base, see :func:`dit4sr.models.base.base_identity`; None from scratch.
    """

    network: Network
    config: dict[str, Any]
    step: int
    path: Path
    base: dict[str, Any] | None = None


def read_checkpoint(path: Path, parts: Collection[str] | None = None, *, verified: bool = False) -> dict[str, Any]:
    """Read a checkpoint's tensors and plain values, if every byte is as it was written.

    Nothing else in it is executed or built.

    Args:
        path: a file, or the folder that several processes wrote.
        parts: whose tensors are wanted, such as ``ema``; the others of a folder are not read. None reads all.
        verified: it has just been found whole (``newest_valid``): its checksums are not computed again.

    Raises:
        UserError: where there is none, or it is damaged, or is none of ours.
    """
    if not path.is_file() and not (path / INDEX).is_file():
        raise none_at(path)
    if path.is_dir():
        if not verified and (reason := damage(path)):
            raise UserError(f"{path} cannot be read as a checkpoint: {reason}: {INSTEAD}")
        checkpoint = read_sharded(path, parts)
    else:
        try:
            checkpoint = read_archive(path, verified=verified)
        except ValueError as error:
            raise UserError(f"{path} cannot be read as a checkpoint: {error}") from error
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


def load_trained(
    path: str | Path,
    wanted: Mapping[str, Any] | None = None,
    *,
    pretrained: str | None = None,
    dtype: torch.dtype | None = None,
) -> TrainedModel:
    """Build the network that a checkpoint was trained as, with its averaged weights.

    Args:
        path: a file that train.py wrote.
        wanted: refuse the checkpoint unless its model and backbone are these.
        pretrained: where its frozen base is now; None looks where it was, and then where DIT4SR_SD35 says.
        dtype: of all weights on a pretrained base; None is that of the base's files.

    Raises:
        UserError: see :func:`read_checkpoint`, :func:`check_same_model` and :func:`check_same_base`.
    """
    path = Path(path)
    checkpoint = read_checkpoint(path, ("ema",))
    config = checkpoint["dit4sr"]
    if wanted is not None:
        check_same_model(path, config, wanted)
    step = int(checkpoint["global_step"])
    return restore_trained(path, config, checkpoint["ema"], step, pretrained=pretrained, dtype=dtype)


def restore_trained(
    path: Path,
    config: Mapping[str, Any],
    weights: Mapping[str, torch.Tensor],
    step: int,
    *,
    pretrained: str | None = None,
    dtype: torch.dtype | None = None,
) -> TrainedModel:
    """Put trained weights onto their base; arguments as for :func:`load_trained`.

    Raises:
        UserError: for a base that is not here or another one, or weights that do not fit it.
    """
    backbone = config["backbone"]
    base = None
    if backbone.get("pretrained"):
        backbone = {**backbone, "pretrained": find_base(path, backbone["pretrained"], pretrained)}
        base = base_identity(backbone)
        check_same_base(path, config.get("base"), base)
        backbone = resolve_backbone(backbone)
    network = build_network(config["model"], backbone, config["seed"], dtype=dtype, trainable_dtype=None)
    parameters = dict(network.named_parameters())
    trainable = {n for n, p in parameters.items() if p.requires_grad}
    wrong = sorted(trainable ^ set(weights))
    wrong += [n for n in weights if n in trainable and weights[n].shape != parameters[n].shape]
    if wrong:
        raise UserError(f"{path} does not fit its own model: {', '.join(wrong[:5])} …; train it again")
    with torch.no_grad():
        for name, value in weights.items():
            parameters[name].copy_(value)
    network.eval().requires_grad_(False)
    return TrainedModel(network, {**config, "backbone": backbone}, step, path, base)


def find_base(path: Path, saved: str, given: str | None) -> str:
    """Where the frozen base of a checkpoint is: as given, where it was in training, or where DIT4SR_SD35 says.

    Raises:
        UserError: where the folder it was trained on is not on this machine and no other is named.
    """
    if given:
        return given
    elsewhere = os.environ.get(BASE_VARIABLE)
    if Path(saved).expanduser().is_dir() or not (elsewhere or Path(saved).is_absolute()):
        return saved
    if elsewhere:
        return elsewhere
    raise UserError(
        f"{path} was trained on the base at {saved}, which is not here: set backbone.pretrained=FOLDER (or "
        f"{BASE_VARIABLE}=FOLDER) to the same base on this machine"
    )

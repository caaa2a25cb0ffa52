"""From the config of a verb to a restorer: which checkpoint, which sampler, which device."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from dit4sr.errors import UserError
from dit4sr.models.checkpoint import TrainedModel, check_same_model, load_trained, newest_checkpoint
from dit4sr.restoration.restorer import Restorer, TileSettings


def load_restorer(config: Mapping[str, Any], explicit: Collection[str]) -> tuple[Restorer, TrainedModel]:
    """Load the checkpoint that a config asks for.

    The model and the backbone are the checkpoint's own, unless the command line names them: then they must be
    the same. The sampler is the config's; where it is the one of another backbone, which the command line did
    not name, the checkpoint's own is taken, with what the command line changes in it.

    Args:
        config: configs/evaluate.yaml or restore.yaml as plain values.
        explicit: names of the groups and values that the command line sets.

    Raises:
        UserError: no checkpoint, an unreadable one, one of another model, or no such device.
    """
    device = resolve_device(config["device"])
    if config["ckpt"] is None:
        path = newest_checkpoint(Path(config["paths"]["outputs"]), config["model"]["name"])
    else:
        path = checkpoint_file(Path(config["ckpt"]))
    trained = load_trained(path)
    groups = {name.split(".")[0] for name in explicit}
    check_same_model(
        path,
        trained.config,
        {part: config[part] if part in groups else trained.config[part] for part in ("model", "backbone")},
    )
    restorer = Restorer.from_trained(trained, sampler_for(config, trained.config, explicit), device)
    if any(name.startswith("backbone.tile") for name in explicit):
        restorer = replace(restorer, tile=TileSettings(**config["backbone"]["tile"]))
    return restorer, trained


def sampler_for(config: Mapping[str, Any], saved: Mapping[str, Any], explicit: Collection[str]) -> dict[str, Any]:
    """The sampler's config, see :func:`load_restorer`."""
    asked = dict(config["sampler"])
    if "sampler" in explicit or config["backbone"]["name"] == saved["backbone"]["name"]:
        return asked
    changed = {name.removeprefix("sampler.") for name in explicit if name.startswith("sampler.")}
    return {**saved["sampler"], **{name: asked[name] for name in changed}}


def checkpoint_file(path: Path) -> Path:
    """The checkpoint itself, or the last one of a run's folder."""
    last = path / "checkpoints" / "last.ckpt"
    return last if last.is_file() else path


def resolve_device(name: str) -> torch.device:
    """The device of that name; ``auto`` is a GPU where there is one.

    Raises:
        UserError: for a device that does not exist here.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise UserError(f"device={name} cannot be used here: choose auto or cpu") from error
    return device

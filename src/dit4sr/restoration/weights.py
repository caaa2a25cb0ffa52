"""``weights=<folder>``: released weights, or what ``export`` wrote, as a model that can restore."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from omegaconf import OmegaConf

from dit4sr.config import config_dir
from dit4sr.errors import UserError
from dit4sr.models.base import DEFAULTS, fields_of, with_fields
from dit4sr.models.build import Network
from dit4sr.models.checkpoint import TrainedModel, check_same_model, find_base, restore_trained
from dit4sr.models.controlnet import SD3ControlNet
from dit4sr.models.released import load_network
from dit4sr.models.spec import SPEC_PREFIX, LRStreamSpec
from dit4sr.pretrained import component_folder, read_config
from dit4sr.tensor_files import read_headers, read_tensors

NOTE = "dit4sr.json"
"""What an exported folder says of itself: ``what`` (full or trainable), ``config``, ``step`` and ``base``."""

TRAINABLE = "control.safetensors"
"""The trained weights of a trainable-only export."""


def load_weights(
    config: Mapping[str, Any], explicit: Collection[str], *, dtype: torch.dtype | None = None
) -> TrainedModel:
    """The model in the folder ``config["weights"]``.

    Its autoencoder, text encoders and tokenizers are the folder's own where it has them, else those of
    ``backbone.pretrained``.

    Args:
        config: configs/evaluate.yaml or restore.yaml as plain values.
        explicit: names of the groups and values that the command line sets.
        dtype: of all weights; None is that of the files.

    Raises:
        UserError: for a folder that cannot be read, another model than asked for, or no base beside it.
    """
    folder = Path(config["weights"]).expanduser()
    note = read_note(folder)
    given = config["backbone"]["pretrained"] if "backbone.pretrained" in explicit else None
    if note is not None and note["what"] == "trainable":
        weights = read_tensors(read_headers([folder / TRAINABLE]))
        trained = restore_trained(folder, note["config"], weights, note["step"], pretrained=given, dtype=dtype)
    else:
        trained = load_full(folder, config, explicit, note, given, dtype)
    if any(name.split(".")[0] == "model" for name in explicit):
        model = {**config["model"], "name": trained.config["model"]["name"]}
        check_same_model(folder, trained.config, {"model": model, "backbone": trained.config["backbone"]})
    return trained


def load_full(
    folder: Path,
    config: Mapping[str, Any],
    explicit: Collection[str],
    note: Mapping[str, Any] | None,
    given: str | None,
    dtype: torch.dtype | None,
) -> TrainedModel:
    """A whole network; see :func:`load_weights`."""
    preset = config.get("weights_preset") or {}
    # Before gigabytes are read: whether all that belongs to the network is here.
    backbone = backbone_of(folder, config, explicit, note, given)
    network = load_network(folder, preset.get("key_source"), dtype=dtype)
    own = fields_of(network.config)
    if not backbone.get("pretrained") and (
        different := [n for n in DEFAULTS if own[n] != fields_of(backbone["transformer"])[n]]
    ):
        raise UserError(
            f"weights={folder} is not of backbone={backbone['name']} ({', '.join(different)} differ): "
            "say which by backbone=…"
        )
    vae = None
    if backbone["autoencoder"]["name"] == "kl":
        source = backbone["autoencoder"].get("source") or component_folder(backbone["pretrained"], "vae")
        vae = read_config(Path(source), ["AutoencoderKL"])
    backbone = with_fields(backbone, own, vae)
    saved = note["config"] if note else {}
    model = saved.get("model") or model_config(network, preset.get("name"))
    trained = {"seed": None, "sampler": dict(config["sampler"]), **saved, "model": model, "backbone": backbone}
    return TrainedModel(network, trained, int(note["step"]) if note else 0, folder, note.get("base") if note else None)


def read_note(folder: Path) -> dict[str, Any] | None:
    """What an exported folder says of itself; None for other folders.

    Raises:
        UserError: for a file that cannot be read.
    """
    for path in (folder / NOTE, folder.parent / NOTE if folder.name == "transformer" else folder / NOTE):
        if path.is_file():
            try:
                note = json.loads(path.read_text(encoding="utf-8"))
                note["what"], note["step"], note["config"]["model"], note["config"]["backbone"]  # all are needed
            except (OSError, ValueError, KeyError, TypeError) as error:
                raise UserError(f"{path} cannot be read ({error}): export the model again") from error
            return note
    return None


def model_config(network: Network, name: str | None) -> dict[str, Any]:
    """What configs/model would say of a network."""
    if isinstance(network, SD3ControlNet):
        return {"name": name or "sd3_controlnet", "network": "sd3_controlnet"}
    stated = {SPEC_PREFIX + f.name: network.config[SPEC_PREFIX + f.name] for f in fields(LRStreamSpec)}
    return {"name": name or "dit4sr", "network": "dit4sr", **stated}


def backbone_of(
    folder: Path,
    config: Mapping[str, Any],
    explicit: Collection[str],
    note: Mapping[str, Any] | None,
    given: str | None,
) -> dict[str, Any]:
    """The backbone that a folder's network belongs to, its sources found on this machine.

    An exported folder states it. Else it is the one that the command line or the preset chooses; without either,
    the config's where the network has its fields, and Stable Diffusion 3.5's otherwise.

    Raises:
        UserError: where the autoencoder or the text encoders are neither in the folder nor in the base.
    """
    if note is not None:
        backbone = dict(note["config"]["backbone"])
    elif "backbone" in explicit or config.get("weights_preset") or same_fields(folder, config["backbone"]):
        backbone = dict(config["backbone"])
    else:
        backbone = read_backbone("sd35_medium")
    if not backbone.get("pretrained"):
        return backbone
    has = {part: (folder / part / "config.json").is_file() for part in ("vae", "text_encoder")}
    local = bool(backbone.get("local_files_only"))
    base = str(folder) if all(has.values()) else find_base(folder, backbone["pretrained"], given)
    autoencoder = dict(backbone["autoencoder"])
    if autoencoder["name"] == "kl" and not autoencoder.get("source"):
        vae = folder / "vae" if has["vae"] else component_folder(base, "vae", local_files_only=local)
        autoencoder["source"] = str(vae)
    return {**backbone, "pretrained": str(folder) if has["text_encoder"] else base, "autoencoder": autoencoder}


def same_fields(folder: Path, backbone: Mapping[str, Any]) -> bool:
    """Whether the network in a folder has a backbone's fields."""
    for path in (folder / "transformer" / "config.json", folder / "config.json"):
        if path.is_file():
            try:
                return fields_of(json.loads(path.read_text(encoding="utf-8"))) == fields_of(backbone["transformer"])
            except (OSError, ValueError, AttributeError, TypeError):
                return False  # it is read again, and told of, when it is loaded
    return False


def read_backbone(name: str) -> dict[str, Any]:
    """One of configs/backbone as plain values."""
    loaded = OmegaConf.load(config_dir() / "backbone" / f"{name}.yaml")
    return OmegaConf.to_container(loaded, resolve=True)  # type: ignore[return-value]

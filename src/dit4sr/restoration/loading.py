"""From the config of a verb to a restorer: which checkpoint or weights, which sampler, which device."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import fields, replace
from typing import Any

import torch

from dit4sr.acceleration import AccelerationSettings, accelerate
from dit4sr.acceleration.autoencoder import accelerate_autoencoder
from dit4sr.errors import UserError
from dit4sr.models.base import dtype_named
from dit4sr.models.checkpoint import TrainedModel, check_same_model, read_checkpoint, restore_trained
from dit4sr.models.dit4sr import DiT4SRTransformer2DModel
from dit4sr.prompts import PromptSettings
from dit4sr.prompts.settings import check_text_device
from dit4sr.restoration.checks import check_device, check_network, check_paths
from dit4sr.restoration.restorer import Restorer, TileSettings
from dit4sr.restoration.weights import load_weights
from dit4sr.trained_runs import checkpoint_of


def load_restorer(
    config: Mapping[str, Any], explicit: Collection[str], prompts: Iterable[str] = ()
) -> tuple[Restorer, TrainedModel]:
    """Load the checkpoint or the weights that a config asks for.

    The model and the backbone are the checkpoint's own, unless the command line names them: then they must be
    the same. The sampler is the config's; where it is the one of another backbone, which the command line did
    not name, the checkpoint's own is taken, with what the command line changes in it.

    Args:
        config: configs/evaluate.yaml or restore.yaml as plain values.
        explicit: names of the groups and values that the command line sets.
        prompts: those that will be asked for, as far as they are known: where memory is short they are embedded before
            the network comes to its device.

    Raises:
        UserError: no checkpoint, an unreadable one, one of another model, or no such device.
    """
    check_network(config)
    device = resolve_device(config["device"])
    text_device = check_text_device(config.get("text_encoder_device"))
    trained = load_model(config, explicit)
    if device.type == "cpu" and next(trained.network.parameters()).dtype == torch.float16:
        trained.network.float()  # few of the CPU's operations exist in float16, and none is fast
    set_injection_scale(trained, config)
    prompt = PromptSettings.from_config(config.get("prompt"))
    sampler = sampler_for(config, trained.config, explicit)
    restorer = Restorer.from_trained(trained, sampler, device, prompt, text_device, prompts)
    changed = {f.name: config["backbone"]["tile"][f.name] for f in fields(TileSettings)}
    if "backbone.tile" not in explicit:
        changed = {name: value for name, value in changed.items() if f"backbone.tile.{name}" in explicit}
    if changed:
        restorer = replace(restorer, tile=replace(restorer.tile, **changed))
    return accelerated(restorer, trained, config.get("acceleration"))


def accelerated(
    restorer: Restorer, trained: TrainedModel, config: Mapping[str, Any] | None
) -> tuple[Restorer, TrainedModel]:
    """Make a restorer faster as configs/acceleration says; None leaves it as it is.

    Raises:
        UserError: where the settings are none, or a package, a compiler or a kind of GPU is missing.
    """
    if config is None:
        return restorer, trained
    settings = AccelerationSettings.from_config(config)
    network = accelerate(restorer.network, settings)
    local = bool(trained.config["backbone"].get("local_files_only"))
    autoencoder = accelerate_autoencoder(restorer.autoencoder, settings, restorer.device, local_files_only=local)
    faster = replace(restorer, network=network, autoencoder=autoencoder, acceleration=dict(config))
    return faster, replace(trained, network=network)


def load_model(config: Mapping[str, Any], explicit: Collection[str]) -> TrainedModel:
    """The network of ``weights``, of ``ckpt``, or of the newest checkpoint; see :func:`load_restorer`.

    A checkpoint's frozen base is looked for where ``backbone.pretrained`` says, if the command line sets it, else
    where it was in training, else where DIT4SR_SD35 says; it must be the one that the checkpoint was trained on.

    Raises:
        UserError: see there.
    """
    check_paths(config)
    if config.get("weights") is not None:
        return load_weights(config, explicit, dtype=dtype_named(config["backbone"].get("dtype")))
    path = checkpoint_of(config, explicit)
    checkpoint = read_checkpoint(path)
    saved = checkpoint["dit4sr"]
    wanted = {part: saved[part] for part in ("model", "backbone")}
    if any(name.split(".")[0] == "model" for name in explicit):
        wanted["model"] = config["model"]
    if "backbone" in explicit or any(name.startswith("backbone.transformer") for name in explicit):
        wanted["backbone"] = dict(config["backbone"])
        if saved["backbone"].get("pretrained") and config["backbone"].get("pretrained"):
            # What a config says of a pretrained base counts for nothing; the base itself is verified below.
            wanted["backbone"]["transformer"] = saved["backbone"]["transformer"]
    check_same_model(path, saved, wanted)
    # Where the base is, and how it is read, is for this machine to say.
    here = {n: config["backbone"][n] for n in ("dtype", "local_files_only") if f"backbone.{n}" in explicit}
    backbone = {**saved["backbone"], **here}
    return restore_trained(
        path,
        {**saved, "backbone": backbone},
        checkpoint["ema"],
        int(checkpoint["global_step"]),
        pretrained=config["backbone"]["pretrained"] if "backbone.pretrained" in explicit else None,
        dtype=dtype_named(backbone.get("dtype")),
    )


def set_injection_scale(trained: TrainedModel, config: Mapping[str, Any]) -> None:
    """Set s of the LR Injection: ``injection_scale``, else the preset's, else the export's, else 1 as in training.

    Raises:
        UserError: for a network without an injection.
    """
    scale = config.get("injection_scale")
    if scale is None:
        scale = (config.get("weights_preset") or {}).get("injection_scale")
    if scale is None:
        scale = trained.config.get("injection_scale")  # what an export was made with
    if scale is None:
        return
    if not isinstance(trained.network, DiT4SRTransformer2DModel) or trained.network.spec.injection == "none":
        raise UserError(f"injection_scale={scale}: {trained.config['model']['name']} has no LR injection to scale")
    trained.network.lr_injection_scale = float(scale)
    trained.config["injection_scale"] = float(scale)


def sampler_for(config: Mapping[str, Any], saved: Mapping[str, Any], explicit: Collection[str]) -> dict[str, Any]:
    """The sampler's config, see :func:`load_restorer`."""
    asked = dict(config["sampler"])
    if "sampler" in explicit or config["backbone"]["name"] == saved["backbone"]["name"]:
        return asked
    changed = {name.removeprefix("sampler.") for name in explicit if name.startswith("sampler.")}
    return {**saved["sampler"], **{name: asked[name] for name in changed}}


def resolve_device(name: str) -> torch.device:
    """The device of that name; ``auto`` is a GPU where there is one.

    Raises:
        UserError: for a device that does not exist here.
    """
    check_device(name)
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise UserError(f"device={name} cannot be used here: choose auto or cpu") from error
    return device

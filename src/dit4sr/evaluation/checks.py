"""What is refused of an evaluation's config before a benchmark is looked for, or torch imported."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from dit4sr.errors import UserError
from dit4sr.restoration.checks import check_device, check_network, check_paths
from dit4sr.trained_runs import check_any_network

MOST_SEED = 2**63 - 1

METHODS = ("checkpoint", "bicubic", "folder", "spandrel")

BASELINE = "bicubic"
"""Name of the method that is in every table."""

NETWORKS = (".safetensors", ".pth", ".pt", ".ckpt")
"""Suffixes of other people's networks."""


def check_settings(config: dict[str, Any]) -> None:
    """Refuse settings of the wrong kind; ``seeds`` becomes a list.

    Raises:
        UserError: naming the setting.
    """
    for name in ("samples", "batch_size", "pictures", "processes"):
        if not _whole(config[name]) or config[name] < 1:
            raise UserError(f"{name}={config[name]}: give 1 or more")
    for name in ("shuffled", "metrics_only", "prefetch", "calibrate"):
        if not isinstance(config[name], bool):
            raise UserError(f"{name}={config[name]}: give true or false")
    if config["resume"] not in ("auto", "never"):
        raise UserError(f"resume={config['resume']}: choose auto or never")
    check_device(config["device"])
    for part, name in (("captioner", "path"), ("benchmark", "lq"), ("benchmark", "hq"), ("benchmark", "prompts")):
        if (config.get(part) or {}).get(name) == "":  # it would be the working folder
            raise UserError(f"{part}.{name}= is empty: give a folder, or leave it out")
    if not _whole(config["seed"]) or not 0 <= config["seed"] <= MOST_SEED:
        raise UserError(f"seed={config['seed']}: give a whole number, 0 or more")
    seeds = config["seeds"] if isinstance(config["seeds"], list) else [config["seeds"]]
    if config["seeds"] is None:
        seeds = [config["seed"]]
    if not seeds or not all(_whole(seed) and 0 <= seed <= MOST_SEED for seed in seeds) or len({*seeds}) < len(seeds):
        raise UserError(f"seeds={config['seeds']}: give different whole numbers, such as [0,1,2]")
    config["seeds"] = seeds


def check_method(config: Mapping[str, Any], explicit: Collection[str]) -> None:
    """Refuse a method that cannot be, or whose files are not there.

    Args:
        config: configs/evaluate.yaml as plain values.
        explicit: names of the settings that the command line set.

    Raises:
        UserError: naming the setting.
    """
    method = config["method"]
    if method["name"] not in METHODS:
        raise UserError(f"method.name={method['name']!r}: choose checkpoint, bicubic, folder or spandrel")
    if method["name"] == "checkpoint":
        check_network(config)
        check_paths(config)
        check_any_network(config, explicit)
    elif method["name"] == "folder":
        check_restored(method)
    elif method["name"] == "spandrel":
        check_foreign(method)


def check_restored(method: Mapping[str, Any]) -> None:
    """Refuse a folder of restored images that is none.

    Raises:
        UserError: saying what to give.
    """
    if method["path"] in (None, ""):
        raise UserError("method=folder needs method.path=<folder of restored images>")
    folder = Path(str(method["path"])).expanduser()
    if not folder.is_dir():
        raise UserError(f"method.path={folder} is no folder: give the one with the restored images")
    refuse_name(str(method["label"] or folder.resolve().name))


def check_foreign(method: Mapping[str, Any]) -> None:
    """Refuse another project's network that is not there, or sizes of tiles that cannot be.

    Raises:
        UserError: naming the setting.
    """
    if method["path"] in (None, ""):
        raise UserError("method=spandrel needs method.path=<checkpoint of Real-ESRGAN, SwinIR, …>")
    path = Path(str(method["path"])).expanduser()
    if not path.is_file() or path.suffix.lower() not in NETWORKS:
        raise UserError(f"method.path={path}: give a checkpoint file ({', '.join(NETWORKS)})")
    tile, overlap = method["tile"], method["overlap"]
    for key, value, least in (("tile", tile, 16), ("overlap", overlap, 0)):
        if not (_whole(value) and value >= least) and not (key == "tile" and value is None):
            raise UserError(f"method.{key}={value}: give a number of LR pixels, {least} or more")
    if tile is not None and overlap >= tile:
        raise UserError(f"method.overlap={overlap}: it must be smaller than method.tile={tile}")
    refuse_name(str(method["label"] or path.stem))


def refuse_name(name: str) -> None:
    """Refuse the baseline's name for another method.

    Raises:
        UserError: saying how to give it another one.
    """
    if name == BASELINE:
        raise UserError(f"{name} is the name of the baseline in every table: give method.label=<another name>")


def _whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)

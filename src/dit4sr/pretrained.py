"""Pretrained models in diffusers' layout: from a folder or a hub id to a component's files, safetensors only.

Nothing heavy is imported here, so that a wrong path is known at once.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

from dit4sr.errors import UserError

BASE = "stabilityai/stable-diffusion-3.5-medium"
HOW_TO_GET_THE_BASE = (
    f"accept the licence of {BASE} on the hub, download it (hf download {BASE} --local-dir FOLDER) and set "
    "DIT4SR_SD35=FOLDER or backbone.pretrained=FOLDER, or train from scratch with backbone=nano or backbone=small"
)
WEIGHT_STEMS = ("diffusion_pytorch_model", "model")
"""What diffusers and transformers call a component's weights."""

VARIANTS = ("bf16", "fp16", "fp32")
"""Suffixes of variants, in the order in which they are taken where the plain file is missing."""

READ_SUFFIXES = ("json", "safetensors", "txt", "model", "jinja")
"""Of the files that are downloaded: configs, weights, tokenizers, chat templates."""

HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")


def component_folder(
    source: str | Path, component: str, *, local_files_only: bool = False, hint: str = HOW_TO_GET_THE_BASE
) -> Path:
    """The folder of a component (``transformer``, ``vae``, ``text_encoder_3``, …), downloaded if need be.

    Args:
        source: a folder that has the component as a sub-folder, or a hub id (``organisation/name``).
        component: the sub-folder.
        local_files_only: look on this machine alone (as the environment variable HF_HUB_OFFLINE=1 does).
        hint: what a message says to do next.

    Raises:
        UserError: where there is no such folder or repository, or it may not be read.
    """
    folder = Path(source).expanduser()
    if check_local(source, component, hint):
        return folder / component
    folder = hub_folder(str(source), [component], local_files_only=local_files_only, hint=hint)
    return _part(source, folder, component, hint)


def check_local(source: str | Path, component: str, hint: str = HOW_TO_GET_THE_BASE) -> bool:
    """Whether a source is a folder of this machine; False where it may be a hub id. Arguments as above.

    Raises:
        UserError: for a path that is not there, is no folder, or has no such component.
    """
    folder = Path(source).expanduser()
    if not folder.exists():
        if folder.is_absolute() or str(source).startswith(("~", ".")) or not HUB_ID.fullmatch(str(source)):
            raise UserError(f"{source}: there is no such folder: {hint}")
        return False
    _part(source, folder, component, hint)
    return True


def _part(source: str | Path, folder: Path, component: str, hint: str) -> Path:
    if folder.is_file():
        raise UserError(f"{source} is a file: give the folder in diffusers' layout that has {component}/; {hint}")
    if not (folder / component / "config.json").is_file():
        there = "config.json in its folder" if (folder / component).is_dir() else "folder"
        raise UserError(f"{source} has no {there} {component}/: {hint}")
    return folder / component


def hub_folder(source: str, folders: Sequence[str], *, local_files_only: bool = False, hint: str) -> Path:
    """Where files of a hub repository are on this machine, downloaded if need be.

    Args:
        source: hub id.
        folders: of the repository; "" for the files outside any folder.
        local_files_only: look in the hub's cache alone.
        hint: what a message says to do next.

    Raises:
        UserError: where there is no such repository, or it may not be read.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import GatedRepoError, LocalEntryNotFoundError, RepositoryNotFoundError

    try:
        # Plain weights alone: repositories also hold single-file checkpoints, pickles and other precisions.
        return Path(
            snapshot_download(
                source,
                allow_patterns=[f"{f}/*.{suffix}" if f else f"*.{suffix}" for f in folders for suffix in READ_SUFFIXES],
                ignore_patterns=[f"*.{variant}{end}" for variant in VARIANTS for end in (".*", "-*")],
                local_files_only=local_files_only,
            )
        )
    except GatedRepoError as error:
        why = "is gated, and this machine's token has no access (hf auth login)"
        raise UserError(f"{source} {why}: {hint}") from error
    except RepositoryNotFoundError as error:
        raise UserError(f"{source} is neither a folder here nor a repository on the hub: {hint}") from error
    except LocalEntryNotFoundError as error:
        raise UserError(
            f"{source} is no folder here, is not in the hub's cache, and the hub was not asked or not reached: {hint}"
        ) from error
    except (OSError, ValueError) as error:
        first = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(f"{source} cannot be had from the hub ({first}): {hint}") from error


def read_config(folder: Path, classes: Collection[str]) -> dict[str, Any]:
    """A component's config.json.

    Args:
        folder: of the component.
        classes: the values of ``_class_name`` that are taken.

    Raises:
        UserError: for a file that is missing, damaged, or of another class.
    """
    path = folder / "config.json"
    if not path.is_file():
        raise UserError(f"{folder} has no config.json: give a component's folder in diffusers' layout")
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read as JSON ({error}): download it again") from error
    found = config.get("_class_name") if isinstance(config, dict) else None
    if found not in classes:
        raise UserError(f"{path} is of class {found}, not {' or '.join(classes)}: give another folder")
    return config


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files of a component: one, or all its shards.

    The plain file is taken first, then the shards that an index lists, then those of a variant (bf16, fp16, fp32).

    Raises:
        UserError: where there are none, or some are missing.
    """
    for stem in WEIGHT_STEMS:
        for variant in ("", *VARIANTS):
            dot = f".{variant}" if variant else ""
            single = folder / f"{stem}{dot}.safetensors"
            if single.is_file():
                return [single]
            index = folder / f"{stem}.safetensors.index{dot}.json"
            if index.is_file():
                return _shards(index)
    if any(folder.glob("*-of-*.safetensors")):
        raise UserError(f"{folder} has shards without their .safetensors.index.json: download it too")
    if any(folder.glob("*.bin")):
        raise UserError(
            f"{folder} has pickled weights alone (.bin), which are never loaded: download the .safetensors files"
        )
    raise UserError(f"{folder} has no {WEIGHT_STEMS[0]}.safetensors: the download is incomplete, do it again")


def _shards(index: Path) -> list[Path]:
    try:
        names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{index} cannot be read as a list of shards: download it again") from error
    if strange := [name for name in names if Path(name).name != name]:
        raise UserError(f"{index} lists {strange[0]}, which is not a file beside it: download it again")
    if missing := [name for name in names if not (index.parent / name).is_file()]:
        raise UserError(
            f"{index.parent} lacks {', '.join(missing[:5])} of {len(names)} shards: "
            "the download is incomplete, do it again"
        )
    return [index.parent / name for name in names]

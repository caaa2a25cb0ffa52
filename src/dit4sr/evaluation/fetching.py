"""Fetching a benchmark from the hub: a zip archive, unpacked safely and put in place whole or not at all."""

from __future__ import annotations

import os
import shutil
import stat
import uuid
import zipfile
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from dit4sr.data.images import SUFFIXES
from dit4sr.errors import UserError

MAX_BYTES = 200 * 2**30
"""Of an archive's unpacked files; more is taken for a decompression bomb."""

KEPT = (*SUFFIXES, ".txt")


def fetch_benchmark(config: Mapping[str, Any], folder: Path) -> bool:
    """Download a benchmark and unpack it into ``folder``, unless its images are there already.

    Args:
        config: configs/benchmark; its ``hub`` says ``repo``, ``file`` and the ``folder`` that the archive holds.
        folder: where benchmarks are kept (``paths.benchmarks``).

    Returns:
        Whether it was downloaded now.

    Raises:
        UserError: no hub has it, the hub cannot be reached, or the archive is not what it should be.
    """
    wanted = [Path(config[side]).expanduser() for side in ("lq", "hq") if config.get(side)]
    there = [path for path in wanted if path.is_dir() and any(path.iterdir())]
    if not wanted or len(there) == len(wanted):
        return False
    hub = config.get("hub")
    if not hub:
        raise UserError(
            f"benchmark {config['name']} is on no hub: get {config['source']} and put its images into {config['lq']}"
        )
    if (folder / hub["folder"]).exists() and any((folder / hub["folder"]).iterdir()):
        lacking = next(path for path in wanted if path not in there)
        raise UserError(
            f"benchmark {config['name']}: {folder / hub['folder']} is there already, but {lacking} holds nothing: move "
            "it away and download again, or complete it by hand"
        )
    archive = _download(config, hub, folder)
    try:
        unpack(archive, folder, hub["folder"])
    except zipfile.BadZipFile as error:
        raise UserError(f"{archive} is no whole zip archive ({error}): delete it and try again") from error
    return True


def unpack(archive: Path, folder: Path, wanted: str) -> None:
    """Unpack the images below the archive's folder ``wanted`` to ``folder/wanted``.

    The folder appears under its name when it is complete. Members with absolute paths or ``..``, and links, are
    refused; files that are neither images nor prompts are left out.

    Raises:
        UserError: for a member that would leave the folder, an archive without the folder, or one too large.
        zipfile.BadZipFile: where it is no zip archive, or damaged.
    """
    temporary = folder / f".{wanted}.{uuid.uuid4().hex[:12]}"
    try:
        with zipfile.ZipFile(archive) as opened:
            members = [m for m in opened.infolist() if not m.is_dir()]
            if sum(m.file_size for m in members) > MAX_BYTES:
                raise UserError(f"{archive} unpacks to more than {MAX_BYTES >> 30} GiB: it is not used")
            unpacked = 0
            for member in members:
                path = PurePosixPath(member.filename.replace("\\", "/"))
                if path.is_absolute() or ".." in path.parts or ":" in path.parts[0]:
                    raise UserError(f"{archive}: its member {member.filename!r} leaves its folder: it is not used")
                if stat.S_ISLNK(member.external_attr >> 16):
                    raise UserError(f"{archive}: its member {member.filename!r} is a link: it is not used")
                hidden = path.name.startswith(".") or "__MACOSX" in path.parts
                if wanted not in path.parts or hidden or path.suffix.lower() not in KEPT:
                    continue
                target = temporary.joinpath(*path.parts[path.parts.index(wanted) + 1 :])
                target.parent.mkdir(parents=True, exist_ok=True)
                with opened.open(member) as source, target.open("wb") as file:
                    shutil.copyfileobj(source, file, 1 << 20)
                unpacked += 1
        if not unpacked:
            raise UserError(f"{archive} holds no images below {wanted}/: it is not the benchmark")
        final = folder / wanted
        if final.is_dir() and not any(final.iterdir()):
            final.rmdir()
        if final.exists():
            raise UserError(f"{final} is there already, but incomplete: move it away, or complete it by hand")
        os.replace(temporary, final)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _download(config: Mapping[str, Any], hub: Mapping[str, Any], folder: Path) -> Path:
    from huggingface_hub import hf_hub_download
    from huggingface_hub.utils import logging

    logging.set_verbosity_error()  # it tells of every try, where one message at the end is enough
    by_hand = f"get {config['source']} by hand and unpack it so that {folder / hub['folder']} holds its folders"
    try:
        return Path(hf_hub_download(hub["repo"], hub["file"], repo_type="dataset"))
    except Exception as error:  # the hub's client raises those of its HTTP library too
        said = str(error).split("\n", 1)[0][:200]
        raise UserError(
            f"benchmark {config['name']} could not be downloaded from the hub data set {hub['repo']} "
            f"({type(error).__name__}: {said}): {by_hand}"
        ) from error

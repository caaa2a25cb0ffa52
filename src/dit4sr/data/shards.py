"""The shard format: POSIX tar files in webdataset's layout, written reproducibly and read without unpickling.

A sample is the run of members ``<key>.png`` (or .jpg, .jpeg, .webp), ``<key>.txt`` (UTF-8 caption) and
``<key>.json`` (where the patch comes from). Other members are never decoded, and a member that could hold a
pickle makes the whole shard refused.
"""

from __future__ import annotations

import glob
import hashlib
import io
import json
import tarfile
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from dit4sr.data.images import Image8, encode_png
from dit4sr.errors import UserError
from dit4sr.files import write_atomically

MANIFEST = "manifest.json"
IMAGE_EXTENSIONS = ("png", "jpg", "jpeg", "webp")
PICKLE_EXTENSIONS = ("pyd", "pyc", "pkl", "pickle", "pth", "pt", "ckpt", "joblib", "dill", "npz")


@dataclass(frozen=True, eq=False)
class ShardSample:
    """One sample to write: ``key`` has no dot; ``image`` is (H, W, 3) uint8; ``origin`` goes to the .json."""

    key: str
    image: Image8 = field(repr=False)
    caption: str
    origin: dict[str, Any]


@dataclass(frozen=True)
class ShardInfo:
    """A written shard as the manifest lists it."""

    name: str
    samples: int
    bytes: int
    sha256: str


def write_shards(folder: Path, samples: Iterable[ShardSample], samples_per_shard: int) -> list[ShardInfo]:
    """Write ``train-000000.tar``, … into a folder, each under a temporary name until it is whole.

    The bytes follow from the samples alone: members in order, modification time, uid and gid 0, no user name.
    """
    samples = iter(samples)
    shards: list[ShardInfo] = []
    while chunk := list(islice(samples, samples_per_shard)):
        shards.append(_write_shard(folder / f"train-{len(shards):06d}.tar", chunk))
    return shards


def _write_shard(path: Path, samples: list[ShardSample]) -> ShardInfo:
    from webdataset.writer import TarWriter  # late: it imports torch

    with write_atomically(path) as temporary:
        with (
            open(temporary, "wb") as file,
            TarWriter(file, user="", group="", mode=0o644, compress=False, encoder=False, mtime=0) as tar,
        ):
            for sample in samples:
                origin = json.dumps(sample.origin, sort_keys=True, ensure_ascii=False)
                tar.write(
                    {
                        "__key__": sample.key,
                        "json": origin.encode(),
                        "png": encode_png(sample.image),
                        "txt": sample.caption.encode(),
                    }
                )
        with open(temporary, "rb") as whole:
            digest = hashlib.file_digest(whole, "sha256").hexdigest()
        return ShardInfo(path.name, len(samples), temporary.stat().st_size, digest)


def write_manifest(folder: Path, shards: list[ShardInfo], facts: dict[str, Any]) -> None:
    """Write ``manifest.json``; its presence says that the folder is whole."""
    content = {**facts, "shards": [asdict(shard) for shard in shards]}
    with write_atomically(folder / MANIFEST) as temporary:
        temporary.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def read_manifest(folder: Path) -> dict[str, Any] | None:
    """Return the manifest of a folder of shards, or None where there is none.

    Raises:
        UserError: the file is not a manifest.
    """
    path = folder / MANIFEST
    if not path.is_file():
        return None
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
        assert all(isinstance(shard["name"], str) for shard in manifest["shards"])
    except (ValueError, LookupError, TypeError, AssertionError) as error:
        raise UserError(f"{path} is not a manifest of shards: delete it and run python prepare.py again.") from error
    return manifest


def find_shards(where: str | Path) -> tuple[Path, ...]:
    """List the shards of a folder (those of its manifest if it has one, else ``*.tar``) or of a glob, sorted.

    A folder that `prepare` wrote keeps them in ``train``, which is looked into.

    Raises:
        UserError: nothing is there, a shard of the manifest is missing, or ``where`` is not a local path.
    """
    text = str(where)
    if text.startswith("pipe:") or "://" in text:
        raise UserError(f"data.shards={text}: shards are read from local folders or globs; copy them here first.")
    folder = Path(where)
    if folder.is_dir():
        if not (folder / MANIFEST).is_file() and not any(folder.glob("*.tar")) and (folder / "train").is_dir():
            folder = folder / "train"
        manifest = read_manifest(folder)
        found = [folder / s["name"] for s in manifest["shards"]] if manifest else sorted(folder.glob("*.tar"))
    else:
        found = sorted(Path(name) for name in glob.glob(text))
    found = [path for path in found if not path.name.startswith(".")]
    if not found:
        raise UserError(
            f"no shard (*.tar) in {text}: run python prepare.py, or point data.shards at a folder of shards."
        )
    if missing := [path for path in found if not path.is_file()]:
        raise UserError(f"{missing[0]} is missing although the manifest lists it: run python prepare.py again.")
    return tuple(found)


@dataclass(frozen=True)
class Member:
    """Bytes of one member inside a tar file."""

    offset: int
    size: int


@dataclass(frozen=True)
class IndexedSample:
    """Where the members of one sample lie; ``image`` is None where the sample has no image."""

    key: str
    image: Member | None
    caption: Member | None


def index_shard(path: Path) -> tuple[IndexedSample, ...]:
    """Find the samples of a shard from its tar headers, without reading their data.

    Members are grouped by webdataset's own rule (adjacent members with the same name up to the first dot).

    Raises:
        UserError: not a readable tar, no sample in it, or a member that could hold a pickle.
    """
    from webdataset.tariterators import group_by_keys

    try:
        with tarfile.open(path, "r:") as tar:
            groups = list(group_by_keys(_members(tar, path)))
            _check_end(tar)
    except UserError:
        raise
    except (tarfile.TarError, OSError, ValueError) as error:
        raise UserError(
            f"{path} is not a readable shard ({error}): delete it and run python prepare.py again."
        ) from error
    if not groups:
        raise UserError(f"{path} holds no sample: delete it and run python prepare.py again.")
    return tuple(
        IndexedSample(
            group["__key__"], next((group[e] for e in IMAGE_EXTENSIONS if e in group), None), group.get("txt")
        )
        for group in groups
    )


def _check_end(tar: tarfile.TarFile) -> None:
    """Refuse a file that was cut off between or inside headers, where tarfile itself just stops."""
    assert tar.fileobj is not None
    tar.fileobj.seek(tar.offset)
    if tar.fileobj.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
        raise tarfile.ReadError("it is cut off")


def _members(tar: tarfile.TarFile, path: Path) -> Iterator[dict[str, Any]]:
    for info in tar:
        if not info.isreg():
            continue
        extension = info.name.rpartition(".")[2].lower()
        if extension in PICKLE_EXTENSIONS or (extension == "npy" and _holds_objects(tar, info)):
            raise UserError(
                f"shard {path} refused: its member {info.name} may hold a pickle, which runs code when it is "
                "read. Write the shard again without it."
            )
        yield {"fname": info.name, "data": Member(info.offset_data, info.size), "__url__": str(path)}


def _holds_objects(tar: tarfile.TarFile, info: tarfile.TarInfo) -> bool:
    """Whether a .npy member is, or may be, an array of pickled objects; reads the array's header only."""
    file = tar.extractfile(info)
    assert file is not None
    head = io.BytesIO(file.read(1 << 16))
    try:
        major, _ = np.lib.format.read_magic(head)
        read = np.lib.format.read_array_header_1_0 if major == 1 else np.lib.format.read_array_header_2_0
        return bool(read(head)[2].hasobject)
    except ValueError:
        return True

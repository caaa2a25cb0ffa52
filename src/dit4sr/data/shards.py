"""Writing shards: POSIX tar files in webdataset's layout, with the same bytes for the same samples.

:mod:`dit4sr.data.shard_index` says what a sample's members are and finds them again.
"""

from __future__ import annotations

import glob
import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from itertools import chain, islice
from pathlib import Path
from typing import Any

from dit4sr.data.images import EXTENSIONS, Image8, encode_image
from dit4sr.errors import UserError
from dit4sr.files import write_atomically

MANIFEST = "manifest.json"


@dataclass(frozen=True, eq=False)
class ShardSample:
    """One sample to write.

    ``key`` has no dot; ``image`` is (H, W, 3) uint8; ``origin`` goes to the .json; ``members`` are the bytes of
    further members by extension, such as ``lq.png`` or ``latent.safetensors``.
    """

    key: str
    image: Image8 = field(repr=False)
    caption: str
    origin: dict[str, Any]
    members: Mapping[str, bytes] = field(default_factory=dict, repr=False)

    def encoded(self, payload: str = "png", quality: int = 95) -> EncodedSample:
        """The sample's key and members, with the image coded by `encode_image`."""
        origin = json.dumps(self.origin, sort_keys=True, ensure_ascii=False)
        members = {
            **self.members,
            "json": origin.encode("utf-8", "backslashreplace"),
            EXTENSIONS[payload]: encode_image(self.image, payload, quality),
            "txt": self.caption.encode("utf-8", "replace"),
        }
        return self.key, members


EncodedSample = tuple[str, Mapping[str, bytes]]
"""Key of a sample, and its members by extension."""


@dataclass(frozen=True)
class ShardInfo:
    """A written shard as the manifest lists it."""

    name: str
    samples: int
    bytes: int
    sha256: str


def write_shards(folder: Path, samples: Iterable[ShardSample], samples_per_shard: int) -> list[ShardInfo]:
    """Write ``train-000000.tar``, … into a folder; see `write_encoded`. Images are coded as PNG."""
    return write_encoded(folder, (sample.encoded() for sample in samples), samples_per_shard)


def write_encoded(
    folder: Path, samples: Iterable[EncodedSample], samples_per_shard: int, name: str = "train-{:06d}.tar"
) -> list[ShardInfo]:
    """Write samples into shards, each under a temporary name until it is whole, one sample in memory at a time.

    The bytes follow from the samples alone: members in order, modification time, uid and gid 0, no user name.

    Args:
        folder: of the shards.
        samples: in order.
        samples_per_shard: of each shard but the last.
        name: of a shard, formatted with its number.
    """
    samples = iter(samples)
    shards: list[ShardInfo] = []
    for first in samples:
        chunk = chain([first], islice(samples, samples_per_shard - 1))
        shards.append(_write_shard(folder / name.format(len(shards)), chunk))
    return shards


def _write_shard(path: Path, samples: Iterable[EncodedSample]) -> ShardInfo:
    from webdataset.writer import TarWriter  # late: it imports torch

    with write_atomically(path) as temporary:
        count = 0
        with (
            open(temporary, "wb") as file,
            TarWriter(file, user="", group="", mode=0o644, compress=False, encoder=False, mtime=0) as tar,
        ):
            for count, (key, members) in enumerate(samples, start=1):  # noqa: B007 - the last count is the shard's
                tar.write({"__key__": key, **members})
        with open(temporary, "rb") as whole:
            digest = hashlib.file_digest(whole, "sha256").hexdigest()
        return ShardInfo(path.name, count, temporary.stat().st_size, digest)


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
    return parse_manifest(path.read_bytes(), str(path)) if path.is_file() else None


def parse_manifest(content: bytes, where: str) -> dict[str, Any]:
    """Return a manifest from its JSON.

    Raises:
        UserError: it is not a manifest; ``where`` is named.
    """
    try:
        manifest = json.loads(content)
        assert all(isinstance(shard["name"], str) for shard in manifest["shards"])
    except (ValueError, LookupError, TypeError, AssertionError) as error:
        raise UserError(f"{where} is not a manifest of shards: delete it and run python prepare.py again.") from error
    return dict(manifest)


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

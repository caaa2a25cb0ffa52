"""Where the samples of a shard lie: found from its tar headers, without reading or decoding their data.

A sample is a run of adjacent members ``<key>.<extension>`` with the same key (the name up to its first dot):

    ``.png`` ``.jpg`` ``.jpeg`` ``.webp`` (or ``.hq.png`` …)   the HQ image
    ``.lq.png`` …                                             the LQ image of a pair
    ``.txt``                                                  the caption, UTF-8
    ``.json``                                                 where the sample comes from
    ``.prompt.safetensors``                                   the embedded caption: tokens (M, W), pooled (P,)
    ``.latent.safetensors``                                   latents of a pair: hq and lq, both (C, h, w)

Other members are never decoded, and one that could hold a pickle makes the whole shard refused.
"""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from dit4sr.errors import UserError

IMAGE_EXTENSIONS = ("png", "jpg", "jpeg", "webp")
PICKLE_EXTENSIONS = ("pyd", "pyc", "pkl", "pickle", "pth", "pt", "ckpt", "joblib", "dill", "npz")
COMPRESSED_EXTENSIONS = ("gz", "bz2", "xz", "zst", "lz4")
PROMPT_EXTENSION = "prompt.safetensors"
LATENT_EXTENSION = "latent.safetensors"


class RefusedShard(UserError):  # noqa: N818
    """A shard with a member that could run code: never read, never skipped."""


class UnreadableShard(UserError):  # noqa: N818
    """A shard that is broken, cut off or empty."""


@dataclass(frozen=True)
class Member:
    """Bytes of one member inside a tar file."""

    offset: int
    size: int


@dataclass(frozen=True)
class IndexedSample:
    """Where the members of one sample lie, by extension in lower case."""

    key: str
    members: dict[str, Member] = field(default_factory=dict)

    @property
    def image(self) -> Member | None:
        """The HQ image, or None."""
        return self._first(*IMAGE_EXTENSIONS, *(f"hq.{extension}" for extension in IMAGE_EXTENSIONS))

    @property
    def lq(self) -> Member | None:
        """The LQ image of a pair, or None."""
        return self._first(*(f"lq.{extension}" for extension in IMAGE_EXTENSIONS))

    @property
    def caption(self) -> Member | None:
        """The caption, or None."""
        return self.members.get("txt")

    @property
    def prompt(self) -> Member | None:
        """The embedded caption, or None."""
        return self.members.get(PROMPT_EXTENSION)

    @property
    def latent(self) -> Member | None:
        """The latents of the pair, or None."""
        return self.members.get(LATENT_EXTENSION)

    def _first(self, *extensions: str) -> Member | None:
        return next((self.members[e] for e in extensions if e in self.members), None)


def index_shard(path: Path) -> tuple[IndexedSample, ...]:
    """Find the samples of a local shard.

    Members are grouped by webdataset's own rule (adjacent members with the same name up to the first dot).

    Raises:
        UnreadableShard: not a readable tar, cut off, or no sample in it.
        RefusedShard: a member could hold a pickle.
    """
    from webdataset.tariterators import group_by_keys

    try:
        with tarfile.open(path, "r:") as tar:
            groups = list(group_by_keys(_members(tar, path)))
            _check_end(tar)
    except UserError:
        raise
    except (tarfile.TarError, OSError, ValueError) as error:
        raise UnreadableShard(
            f"{path} is not a readable shard ({error}): delete it and run python prepare.py again."
        ) from error
    if not groups:
        raise UnreadableShard(f"{path} holds no sample: delete it and run python prepare.py again.")
    return tuple(
        IndexedSample(
            group["__key__"],
            {str(name): member for name, member in group.items() if isinstance(member, Member)},
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
        extension = _extension(info.name)
        if extension in PICKLE_EXTENSIONS or (extension == "npy" and _holds_objects(tar, info)):
            raise RefusedShard(
                f"shard {path} refused: its member {info.name} may hold a pickle, which runs code when it is "
                "read. Write the shard again without it."
            )
        yield {"fname": info.name, "data": Member(info.offset_data, info.size), "__url__": str(path)}


def _extension(name: str) -> str:
    """The last extension in lower case; that before it where the last is a compressor's."""
    stem, _, extension = name.lower().rpartition(".")
    return stem.rpartition(".")[2] if extension in COMPRESSED_EXTENSIONS else extension


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

"""Reading and decoding the samples of shards by reference."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import BinaryIO, Protocol

import numpy as np
import torch
from torch import Tensor

from dit4sr.data.images import Image8, UnreadableImage, decode_image
from dit4sr.data.remote import RemoteStore, Shard, Unavailable
from dit4sr.data.shard_index import IndexedSample, Member, UnreadableShard, index_shard
from dit4sr.data.tally import InUnreadableShard, Tally, UnusableSample
from dit4sr.prompts import embedding_from_bytes

INDEXES_KEPT = 256  # shards whose index a reader remembers
CACHE_BYTES = 64 << 20  # of decoded samples a reader remembers: small data sets are decoded once
MAX_SAMPLE_PIXELS = 2**26

KINDS = ("synthetic", "paired", "paired_latent")
"""What a sample is: an HQ image whose LQ is made on the fly; a pair of images; or the latents of a pair."""

Reference = tuple[int, int]
"""(number of the shard, number of the sample in it)."""


@dataclass(frozen=True, eq=False)
class RawSample:
    """A decoded sample; ``where`` is shard and key.

    Attributes:
        image: the HQ image, (H, W, 3) uint8 RGB, read-only; empty for ``paired_latent``.
        lq: the LQ image of a pair, (h, w, 3) uint8 RGB.
        latents: hq and lq, (C, h, w) float32.
        prompt: the embedded caption, tokens (M, W) and pooled (P,).
    """

    where: str
    image: Image8 = field(repr=False)
    caption: str
    lq: Image8 | None = field(default=None, repr=False)
    latents: Mapping[str, Tensor] | None = field(default=None, repr=False)
    prompt: Mapping[str, Tensor] | None = field(default=None, repr=False)

    @property
    def nbytes(self) -> int:
        """Bytes of what is decoded."""
        tensors = [*(self.latents or {}).values(), *(self.prompt or {}).values()]
        return self.image.nbytes + (0 if self.lq is None else self.lq.nbytes) + sum(t.nbytes for t in tensors)


class Source(Protocol):
    """Samples in numbered shards."""

    @property
    def shards(self) -> int:
        """Number of shards."""

    def count(self, shard: int) -> int:
        """Samples in a shard; 0 where it is unreadable and its number of samples unknown."""

    def soon(self, shard: int) -> None:
        """Told of a shard that will be read."""

    def read(self, reference: Reference) -> RawSample:
        """Read one sample; raises `UnusableSample`."""


class ShardReader:
    """Reads and decodes samples of shards by reference; remembers a bounded part of what it read.

    A shard that is broken, cut off or gone is skipped, and told to the tally: where a manifest says how many
    samples it had, others stand in for them (see `stream`), otherwise it counts as empty.

    Args:
        shards: paths, or `Shard`s.
        kind: one of `KINDS`.
        prompts: whether embedded captions are read where a sample has one.
        store: fetches remote shards.
        tally: counts unreadable shards.

    Raises:
        RefusedShard: from `count` and `read`, for a shard with a member that could hold a pickle.
    """

    def __init__(
        self,
        shards: Sequence[Path | Shard],
        *,
        kind: str = "synthetic",
        prompts: bool = True,
        store: RemoteStore | None = None,
        tally: Tally | None = None,
    ) -> None:
        self.files = tuple(shard if isinstance(shard, Shard) else Shard(str(shard)) for shard in shards)
        self.index: Callable[[int], tuple[IndexedSample, ...]] = lru_cache(INDEXES_KEPT)(self._index)
        self._kind = kind
        self._prompts = prompts
        self._store = store
        self._tally = tally
        self._unreadable: dict[int, str] = {}
        self._decoded: OrderedDict[Reference, RawSample] = OrderedDict()
        self._decoded_bytes = 0

    @property
    def shards(self) -> int:
        """Number of shards."""
        return len(self.files)

    def count(self, shard: int) -> int:
        """Samples in a shard: those that a manifest lists, else those that its index shows, 0 if unreadable."""
        listed = self.files[shard].samples
        if listed is not None:
            return listed
        try:
            return len(self.index(shard))
        except UnusableSample:
            return 0

    def soon(self, shard: int) -> None:
        """Begin to fetch a remote shard."""
        file = self.files[shard]
        if file.remote and self._store is not None:
            self._store.fetch_soon(file)

    def _path(self, shard: int) -> Path:
        file = self.files[shard]
        if not file.remote:
            return Path(file.location)
        assert self._store is not None, "a remote shard needs a store"
        return self._store.fetch(file)

    def _index(self, shard: int) -> tuple[IndexedSample, ...]:
        file = self.files[shard]
        if shard not in self._unreadable:
            try:
                index = index_shard(self._path(shard))
                if file.samples is None or file.samples == len(index):
                    return index
                reason = f"{file.location} has {len(index)} samples, its manifest says {file.samples}"
            except (UnreadableShard, Unavailable) as error:
                reason = str(error) if file.location in str(error) else f"{file.location}: {error}"
            self._unreadable[shard] = reason
            if self._tally is not None:
                self._tally.bad_shard(file.location, reason, self.shards)
        raise InUnreadableShard(file.location)

    def read(self, reference: Reference) -> RawSample:
        """Read one sample.

        Raises:
            UnusableSample: its shard is unreadable, a member is missing, or one cannot be decoded.
        """
        if (known := self._decoded.get(reference)) is not None:
            self._decoded.move_to_end(reference)
            return known
        sample = self._read(reference)
        self._decoded[reference] = sample
        self._decoded_bytes += sample.nbytes
        while self._decoded_bytes > CACHE_BYTES:
            _, oldest = self._decoded.popitem(last=False)
            self._decoded_bytes -= oldest.nbytes
        return sample

    def _read(self, reference: Reference) -> RawSample:
        shard, number = reference
        index = self.index(shard)
        if number >= len(index):
            raise UnusableSample("not in the shard", f"{self.files[shard].location}, sample {number}")
        entry = index[number]
        where = f"{self.files[shard].location}, sample {entry.key}"
        try:
            with open(self._path(shard), "rb") as file:
                return self._decode(file, entry, where)
        except (OSError, Unavailable) as error:
            raise UnusableSample("cannot be read", f"{where} ({error})") from error

    def _decode(self, file: BinaryIO, entry: IndexedSample, where: str) -> RawSample:
        latents = lq = None
        image = _NO_IMAGE
        if self._kind == "paired_latent":
            latents = _latents(file, entry.latent, where)
        else:
            image = _image(file, entry.image, "image", where)
        if self._kind == "paired":
            lq = _image(file, entry.lq, "LQ image", where)
        prompt = None
        if self._prompts and entry.prompt is not None:
            prompt = _prompt(file, entry.prompt, where)
        try:
            caption = _bytes(file, entry.caption).decode("utf-8").strip() if entry.caption else ""
        except UnicodeDecodeError as error:
            raise UnusableSample("caption is not UTF-8", where) from error
        return RawSample(where, image, caption, lq, latents, prompt)


_NO_IMAGE: Image8 = np.zeros((0, 0, 3), np.uint8)


def _bytes(file: BinaryIO, member: Member) -> bytes:
    file.seek(member.offset)
    return file.read(member.size)


def _image(file: BinaryIO, member: Member | None, what: str, where: str) -> Image8:
    if member is None:
        raise UnusableSample(f"no {what}", where)
    try:
        image = decode_image(_bytes(file, member), MAX_SAMPLE_PIXELS)
    except UnreadableImage as error:
        raise UnusableSample(f"corrupt {what}", where) from error
    image.flags.writeable = False
    return image


def _prompt(file: BinaryIO, member: Member, where: str) -> Mapping[str, Tensor]:
    try:
        embedding = embedding_from_bytes(_bytes(file, member))
    except ValueError as error:
        raise UnusableSample("corrupt embedded prompt", where) from error
    return _finite({"tokens": embedding.tokens[0], "pooled": embedding.pooled[0]}, "embedded prompt", where)


def _latents(file: BinaryIO, member: Member | None, where: str) -> Mapping[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load

    if member is None:
        raise UnusableSample("no latents", where)
    try:
        tensors = load(_bytes(file, member))
        found = {name: tensors[name].float() for name in ("hq", "lq")}
    except (SafetensorError, KeyError, ValueError) as error:
        raise UnusableSample("corrupt latents", where) from error
    return _finite(found, "latents", where)


def _finite(tensors: dict[str, Tensor], what: str, where: str) -> dict[str, Tensor]:
    if not all(bool(torch.isfinite(tensor).all()) for tensor in tensors.values()):
        raise UnusableSample(f"{what} with numbers that are not finite", where)
    return tensors

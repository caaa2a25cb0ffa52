"""The infinite training stream: which sample of which shard is global sample number i.

The stream is made of L lanes. Global sample i is the (i div L)-th of lane i mod L, and every lane is a
sequence that follows from (seed, lane) and the shards alone. So ranks and workers, each taking whole lanes,
change nothing.

A lane takes its part of pass 0 over the data, then its part of pass 1, and so on. Each of the S shards is cut
into m = L / gcd(S, L) stripes (sample j of a shard is in stripe j mod m), which gives S·m virtual shards, a
multiple of L. Pass p orders them by a permutation from (seed, p), and lane l takes those at l, l + L, l + 2L,
… through a shuffle buffer that is emptied before the lane's next pass begins. Hence the lanes' parts of one
pass are disjoint, and together they are every sample exactly once. (Where the parts differ in size, the lanes
do not begin their passes at the same time.)
"""

from __future__ import annotations

import itertools
import math
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import TypeVar

import numpy as np

from dit4sr.data.images import Image8, UnreadableImage, decode_image
from dit4sr.data.shards import IndexedSample, Member, index_shard
from dit4sr.errors import UserError
from dit4sr.randomness import numpy_generator

T = TypeVar("T")

INDEXES_KEPT = 256  # shards whose index a reader remembers
CACHE_BYTES = 64 << 20  # of decoded images a reader remembers: small data sets are decoded once
MAX_SAMPLE_PIXELS = 2**26

Reference = tuple[int, int]
"""(number of the shard, number of the sample in it)."""


def stripe_count(shards: int, lanes: int) -> int:
    """Stripes to cut each shard into, so that the virtual shards are a multiple of the lanes."""
    return lanes // math.gcd(shards, lanes)


def lane_part(shards: int, *, lanes: int, lane: int, seed: int, pass_number: int) -> list[tuple[int, int]]:
    """Return the virtual shards of one lane in one pass, in order, as (number of the shard, stripe)."""
    stripes = stripe_count(shards, lanes)
    # Raw bits and a stable sort: NumPy promises stable bit streams, not stable distributions.
    raw = numpy_generator(seed, pass_number, "shard order").bit_generator.random_raw(shards * stripes)
    order = np.argsort(raw, kind="stable")
    return [divmod(int(virtual), stripes) for virtual in order[lane::lanes]]


def lane_references(
    shards: int,
    count: Callable[[int], int],
    *,
    lanes: int,
    lane: int,
    seed: int,
    shuffle_buffer: int,
    start: int = 0,
) -> Iterator[Reference]:
    """Yield the samples of one lane, without end, from its position ``start``.

    Args:
        shards: number of shards, S.
        count: samples in shard s; asked only when a pass reaches the shard.
        lanes: L.
        lane: 0 … L − 1.
        seed: the run's seed.
        shuffle_buffer: samples among which the next one is drawn; 1 keeps the order of the stripes.
        start: samples of this lane to leave out; whole passes are left out by counting.
    """
    stripes = stripe_count(shards, lanes)
    for number in itertools.count():
        mine = lane_part(shards, lanes=lanes, lane=lane, seed=seed, pass_number=number)
        size = sum(len(range(stripe, count(shard), stripes)) for shard, stripe in mine)
        if start >= size:
            start -= size
            continue
        part = ((shard, j) for shard, stripe in mine for j in range(stripe, count(shard), stripes))
        generator = numpy_generator(seed, number, f"shuffle buffer of lane {lane}")
        yield from itertools.islice(_shuffled(part, shuffle_buffer, generator), start, None)
        start = 0


def _shuffled(items: Iterable[T], size: int, generator: np.random.Generator) -> Iterator[T]:
    raw = generator.bit_generator.random_raw

    def draw(n: int) -> int:
        return (int(raw()) * n) >> 64

    buffer: list[T] = []
    for item in items:
        if len(buffer) < size:
            buffer.append(item)
            continue
        k = draw(size)
        yield buffer[k]
        buffer[k] = item
    while buffer:
        k = draw(len(buffer))
        buffer[k], buffer[-1] = buffer[-1], buffer[k]
        yield buffer.pop()


class UnusableSample(Exception):  # noqa: N818
    """A sample that cannot be trained on; ``reason`` is short, for counting, and the message says where."""

    def __init__(self, reason: str, where: str) -> None:
        super().__init__(f"{where}: {reason}")
        self.reason = reason


@dataclass(frozen=True, eq=False)
class RawSample:
    """A decoded sample: ``image`` is (H, W, 3) uint8 RGB, read-only; ``where`` is shard and key."""

    where: str
    image: Image8 = field(repr=False)
    caption: str


class ShardReader:
    """Reads and decodes samples of local shards by reference; remembers a bounded part of what it read."""

    def __init__(self, shards: Sequence[Path]) -> None:
        self.shards = tuple(shards)
        self.index: Callable[[int], tuple[IndexedSample, ...]] = lru_cache(INDEXES_KEPT)(self._index)
        self._decoded: OrderedDict[Reference, RawSample] = OrderedDict()
        self._decoded_bytes = 0

    def _index(self, shard: int) -> tuple[IndexedSample, ...]:
        return index_shard(self.shards[shard])

    def count(self, shard: int) -> int:
        """Samples in a shard."""
        return len(self.index(shard))

    def read(self, reference: Reference) -> RawSample:
        """Read one sample.

        Raises:
            UnusableSample: it has no image, or the image or the caption cannot be decoded.
        """
        if (known := self._decoded.get(reference)) is not None:
            self._decoded.move_to_end(reference)
            return known
        sample = self._read(reference)
        self._decoded[reference] = sample
        self._decoded_bytes += sample.image.nbytes
        while self._decoded_bytes > CACHE_BYTES:
            _, oldest = self._decoded.popitem(last=False)
            self._decoded_bytes -= oldest.image.nbytes
        return sample

    def _read(self, reference: Reference) -> RawSample:
        shard, number = reference
        path, entry = self.shards[shard], self.index(shard)[number]
        where = f"{path}, sample {entry.key}"
        if entry.image is None:
            raise UnusableSample("no image", where)
        with open(path, "rb") as file:
            image_bytes = _member_bytes(file, entry.image)
            caption_bytes = _member_bytes(file, entry.caption) if entry.caption else b""
        try:
            image = decode_image(image_bytes, MAX_SAMPLE_PIXELS)
            caption = caption_bytes.decode("utf-8").strip()
        except UnreadableImage as error:
            raise UnusableSample("corrupt image", where) from error
        except UnicodeDecodeError as error:
            raise UnusableSample("caption is not UTF-8", where) from error
        image.flags.writeable = False
        return RawSample(where, image, caption)


def _member_bytes(file, member: Member) -> bytes:  # type: ignore[no-untyped-def]
    file.seek(member.offset)
    return file.read(member.size)


class Lane:
    """A lane with a look ahead, for positions whose own sample is unusable."""

    def __init__(self, references: Iterator[Reference]) -> None:
        self._references = references
        self._ahead: deque[Reference] = deque()

    def candidates(self) -> Iterator[Reference]:
        """Yield the sample of the current position, then those of the following ones."""
        for ahead in itertools.count():
            if ahead == len(self._ahead):
                self._ahead.append(next(self._references))
            yield self._ahead[ahead]

    def advance(self) -> None:
        """Go to the next position."""
        self._ahead.popleft()


def numbered_samples(
    reader: ShardReader,
    numbers: Iterable[int],
    make: Callable[[RawSample, int], T],
    *,
    lanes: int,
    seed: int,
    shuffle_buffer: int,
    tally: Tally,
) -> Iterator[T]:
    """Yield ``make(raw sample i, i)`` for increasing numbers i, which visit each of their lanes without gaps.

    Where the sample at a position is unusable, the next usable one of its lane stands in (and comes again at
    its own position), so that every other number keeps its sample, also when the stream starts later.

    Raises:
        UserError: too many samples are unusable.
    """
    opened: dict[int, Lane] = {}
    for i in numbers:
        lane = opened.get(i % lanes)
        if lane is None:
            references = lane_references(
                len(reader.shards),
                reader.count,
                lanes=lanes,
                lane=i % lanes,
                seed=seed,
                shuffle_buffer=shuffle_buffer,
                start=i // lanes,
            )
            lane = opened[i % lanes] = Lane(references)
        for ahead, reference in enumerate(lane.candidates()):
            try:
                sample = make(reader.read(reference), i)
            except UnusableSample as error:
                tally.bad(error, own=ahead == 0)
            else:
                break
        tally.good()
        lane.advance()
        yield sample


class Tally:
    """Counts unusable samples, reports the 1st, 2nd, 4th, 8th … of each kind, and gives up at too many."""

    def __init__(self, max_bad_share: float, report: Callable[[str], None]) -> None:
        self.seen = 0
        self.reasons: dict[str, int] = {}
        self._in_a_row = 0
        self._max_bad_share = max_bad_share
        self._report = report

    def good(self) -> None:
        """Count one position of the stream that was filled."""
        self.seen += 1
        self._in_a_row = 0

    def bad(self, error: UnusableSample, *, own: bool) -> None:
        """Count one unusable sample; ``own`` is False where it was only tried as a stand-in.

        Raises:
            UserError: a share above the limit of at least 100 samples, or 100 in a row, was unusable.
        """
        self._in_a_row += 1
        if own:
            count = self.reasons[error.reason] = self.reasons.get(error.reason, 0) + 1
            if count & (count - 1) == 0:  # 1, 2, 4, 8, …
                self._report(f"unusable sample skipped ({count} so far): {error}")
        bad = sum(self.reasons.values())
        if self._in_a_row >= 100 or (self.seen >= 100 and bad > self._max_bad_share * (self.seen + 1)):
            counts = ", ".join(f"{reason}: {count}" for reason, count in self.reasons.items())
            raise UserError(
                f"too many unusable training samples ({counts} of {self.seen + 1}; the last is {error}): "
                "prepare the shards again, or raise data.max_bad_share."
            )

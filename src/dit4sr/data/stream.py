"""The infinite training stream: which sample of which shard is global sample number i.

The stream is made of L lanes. Global sample i is the (i div L)-th of lane i mod L, and every lane is a
sequence that follows from (seed, lane) and the shards alone. So ranks and workers, each taking whole lanes,
change nothing.

Order "shuffled": a lane takes its part of pass 0 over the data, then its part of pass 1, and so on. Each of
the S shards is cut into m = L / gcd(S, L) stripes (sample j of a shard is in stripe j mod m), which gives S·m
virtual shards, a multiple of L. Pass p orders them by a permutation from (seed, p), and lane l takes those at
l, l + L, l + 2L, … through a shuffle buffer that is emptied before the lane's next pass begins. Hence the
lanes' parts of one pass are disjoint, and together they are every sample exactly once. (Where the parts
differ in size, the lanes do not begin their passes at the same time.)

Order "resampled": the same, but each lane draws its virtual shards with replacement.
Order "sequential": sample i is the i-th of the data as listed, pass after pass, without a shuffle.

With several sources each position of a lane draws its source by weight, and takes the next sample of that
source's own lane.
"""

from __future__ import annotations

import itertools
import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

import numpy as np

from dit4sr.data.mixture import source_numbers
from dit4sr.data.reader import RawSample, Reference, Source
from dit4sr.data.tally import Tally, UnusableSample
from dit4sr.errors import UserError
from dit4sr.randomness import numpy_generator, sample_seed

T = TypeVar("T")


def stripe_count(shards: int, lanes: int) -> int:
    """Stripes to cut each shard into, so that the virtual shards are a multiple of the lanes."""
    return lanes // math.gcd(shards, lanes)


def lane_part(
    shards: int, *, lanes: int, lane: int, seed: int, pass_number: int, resampled: bool = False
) -> list[tuple[int, int]]:
    """Return the virtual shards of one lane in one pass, in order, as (number of the shard, stripe)."""
    stripes = stripe_count(shards, lanes)
    virtual = shards * stripes
    # Raw bits and a stable sort: NumPy promises stable bit streams, not stable distributions.
    if resampled:
        raw = numpy_generator(seed, pass_number, f"resampled shards of lane {lane}").bit_generator.random_raw
        return [divmod((int(bits) * virtual) >> 64, stripes) for bits in raw(virtual // lanes)]
    order = np.argsort(
        numpy_generator(seed, pass_number, "shard order").bit_generator.random_raw(virtual), kind="stable"
    )
    return [divmod(int(number), stripes) for number in order[lane::lanes]]


def lane_references(
    shards: int,
    count: Callable[[int], int],
    *,
    lanes: int,
    lane: int,
    seed: int,
    shuffle_buffer: int,
    start: int = 0,
    order: str = "shuffled",
    soon: Callable[[int], None] = lambda shard: None,
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
        order: one of `ORDERS`.
        soon: told of shards that will be reached soon.

    Raises:
        UserError: there is no sample in any shard.
    """
    if order == "sequential":
        yield from _sequential(shards, count, lanes=lanes, lane=lane, start=start, soon=soon)
    stripes = stripe_count(shards, lanes)
    for number in itertools.count():
        mine = lane_part(shards, lanes=lanes, lane=lane, seed=seed, pass_number=number, resampled=order == "resampled")
        if start and start >= (size := sum(len(range(stripe, count(shard), stripes)) for shard, stripe in mine)):
            start -= size
            _check_any(shards, count, size)
            continue
        part = _with_notice(mine, count, stripes, soon, quiet=start - shuffle_buffer)
        generator = numpy_generator(seed, number, f"shuffle buffer of lane {lane}")
        empty = True
        for reference in itertools.islice(_shuffled(part, shuffle_buffer, generator), start, None):
            empty = False
            yield reference
        start = 0
        _check_any(shards, count, 0 if empty else 1)


def _with_notice(
    mine: list[tuple[int, int]], count: Callable[[int], int], stripes: int, soon: Callable[[int], None], *, quiet: int
) -> Iterator[Reference]:
    """Yield the samples of virtual shards; each shard and the next are told of, but not in the first ``quiet``."""
    passed = 0
    for (shard, stripe), following in itertools.zip_longest(mine, mine[1:]):
        if passed >= quiet:
            soon(shard)
            if following is not None:
                soon(following[0])
        numbers = range(stripe, count(shard), stripes)
        yield from ((shard, j) for j in numbers)
        passed += len(numbers)


def _sequential(
    shards: int, count: Callable[[int], int], *, lanes: int, lane: int, start: int, soon: Callable[[int], None]
) -> Iterator[Reference]:
    position = 0  # of a shard's first sample, over all passes
    while True:
        before = position
        for shard in range(shards):
            if not start:
                soon(shard)
                soon((shard + 1) % shards)
            size = count(shard)
            mine = range((lane - position) % lanes, size, lanes)
            yield from ((shard, j) for j in mine[start:])
            start = max(0, start - len(mine))
            position += size
        _check_any(shards, count, position - before)


def _check_any(shards: int, count: Callable[[int], int], size: int) -> None:
    """Refuse shards without any sample, over which a lane would go on for ever."""
    if size == 0 and not any(count(shard) for shard in range(shards)):
        raise UserError("no sample in any shard of the training data: see the shards that were skipped.")


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


class Lane:
    """A lane of one source, with a look ahead for positions whose own sample is unusable."""

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


@dataclass(frozen=True, eq=False)
class Feed:
    """A source of the stream, its weight among the sources, and the count of what is unusable in it."""

    source: Source
    tally: Tally
    weight: float = 1.0


@dataclass(frozen=True, eq=False)
class Numbered(Generic[T]):
    """A sample of the stream: its source's number, and how many unusable ones it stands in for (0 as a rule)."""

    sample: T
    source: int
    skipped: int


def numbered_samples(
    feeds: Sequence[Feed],
    numbers: Iterable[int],
    make: Callable[[RawSample, int], T],
    *,
    lanes: int,
    seed: int,
    shuffle_buffer: int,
    order: str = "shuffled",
) -> Iterator[Numbered[T]]:
    """Yield ``make(raw sample i, i)`` for increasing numbers i, which visit each of their lanes without gaps.

    Where the sample at a position is unusable, the next usable one of its source's lane stands in (and comes
    again at its own position), so that every other number keeps its sample, also when the stream starts later.

    Raises:
        UserError: too many samples or shards are unusable, or a shard is refused.
    """
    opened: dict[int, tuple[Iterator[int], list[Lane]]] = {}
    weights = [feed.weight for feed in feeds]

    def lane_of(feed: Feed, k: int, lane: int, start: int) -> Lane:
        return Lane(
            lane_references(
                feed.source.shards,
                feed.source.count,
                lanes=lanes,
                lane=lane,
                seed=sample_seed(seed, k, "source") if k else seed,
                shuffle_buffer=shuffle_buffer,
                start=start,
                order=order,
                soon=feed.source.soon,
            )
        )

    for i in numbers:
        lane = i % lanes
        if lane not in opened:
            passed, sources = source_numbers(weights, lane=lane, seed=seed, start=i // lanes)
            opened[lane] = sources, [lane_of(feed, k, lane, passed[k]) for k, feed in enumerate(feeds)]
        sources, parts = opened[lane]
        k = next(sources)
        skipped = 0
        for reference in parts[k].candidates():
            try:
                sample = make(feeds[k].source.read(reference), i)
            except UnusableSample as error:
                feeds[k].tally.bad(error, own=skipped == 0)
                skipped += 1
            else:
                break
        feeds[k].tally.good()
        parts[k].advance()
        yield Numbered(sample, k, skipped)

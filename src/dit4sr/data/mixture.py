"""Which source each sample of a lane comes from, in proportion to the sources' weights."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from dit4sr.randomness import numpy_generator

BLOCK = 4096  # positions drawn at once; part of the stream's definition


def source_numbers(
    weights: Sequence[float], *, lane: int, seed: int, start: int = 0
) -> tuple[list[int], Iterator[int]]:
    """Draw the source of every position of a lane, each on its own in proportion to the weights.

    Args:
        weights: of the sources, positive; only their ratios matter.
        lane: number of the lane.
        seed: the run's seed.
        start: positions to leave out.

    Returns:
        How many of the positions left out each source has, and the sources of the others, without end.
    """
    if len(weights) == 1:
        return [start], itertools.repeat(0)
    blocks, rest = divmod(start, BLOCK)
    passed = np.zeros(len(weights), np.int64)
    for block in range(blocks):
        passed += np.bincount(_block(weights, lane, seed, block), minlength=len(weights))
    first = _block(weights, lane, seed, blocks)
    passed += np.bincount(first[:rest], minlength=len(weights))
    later = (_block(weights, lane, seed, block).tolist() for block in itertools.count(blocks + 1))
    return passed.tolist(), itertools.chain(first[rest:].tolist(), itertools.chain.from_iterable(later))


def _block(weights: Sequence[float], lane: int, seed: int, block: int) -> NDArray[np.int64]:
    # Raw bits: NumPy promises stable bit streams, not stable distributions.
    raw = numpy_generator(seed, block, f"sources of lane {lane}").bit_generator.random_raw(BLOCK)
    u = (raw >> np.uint64(11)) * 2.0**-53
    bounds = np.cumsum(weights) / np.sum(weights)
    return np.searchsorted(bounds[:-1], u, side="right").astype(np.int64)

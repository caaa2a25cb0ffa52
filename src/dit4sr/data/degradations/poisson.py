"""Poisson numbers for the 256 levels of an 8-bit image, by tables of the alias method (Walker 1977).

A general Poisson generator works out its constants anew at every pixel. An image has 256 means at most, so each
mean's distribution is tabled once: a random column, and a comparison that sends to the column's alias or not.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray
from scipy.special import gammaln

LEVELS = 256
COLUMNS = 256  # counts tabled around each mean: ±8 standard deviations at the largest mean, 256


@dataclass(frozen=True, eq=False)
class AliasTables:
    """For level l and column c, flat at 256 l + c.

    Attributes:
        threshold: of the 16-bit number below which the column itself is taken.
        alias: flat index that is taken otherwise.
        noise: count / v − l / 255 of a column.
    """

    threshold: NDArray[np.uint16]
    alias: NDArray[np.uint16]
    noise: NDArray[np.float32]


@cache
def alias_tables(v: int) -> AliasTables:
    """Tables of Poisson(l / 255 · v) for the levels l; v is 1 to 256."""
    mean = np.arange(LEVELS) / 255 * v
    first = np.maximum(0, np.rint(mean).astype(np.int64) - COLUMNS // 2)
    count = first[:, None] + np.arange(COLUMNS)
    with np.errstate(divide="ignore", invalid="ignore"):
        probability = np.exp(count * np.log(mean)[:, None] - mean[:, None] - gammaln(count + 1))
    probability[0] = count[0] == 0
    rest = probability / probability.sum(axis=1, keepdims=True) * COLUMNS  # mean 1 in each row

    rows = np.arange(LEVELS)
    own = np.ones((LEVELS, COLUMNS))
    alias = np.tile(np.arange(COLUMNS), (LEVELS, 1))
    poor = rest.copy()
    for _ in range(COLUMNS - 1):
        # In every row the poorest column is filled up from the richest, and done with.
        i, j = poor.argmin(axis=1), rest.argmax(axis=1)
        own[rows, i], alias[rows, i] = np.minimum(rest[rows, i], 1), j
        rest[rows, j] -= 1 - own[rows, i]
        poor[rows, j] = rest[rows, j]
        poor[rows, i], rest[rows, i] = np.inf, -np.inf
    # The largest threshold stands for certainty: 2^-16 of the last bit is less than the tables' own rounding.
    return AliasTables(
        threshold=np.rint(own * 65535).astype(np.uint16).ravel(),
        alias=(alias + COLUMNS * rows[:, None]).astype(np.uint16).ravel(),
        noise=(count / v - rows[:, None] / 255).astype(np.float32).ravel(),
    )


def poisson_noise(levels: NDArray[np.uint8], v: int, rng: np.random.Generator) -> NDArray[np.float32]:
    """Return Poisson(x · v) / v − x of an 8-bit image, x = level / 255, in units of [0, 1]; v is 1 to 256."""
    tables = alias_tables(v)
    raw = np.frombuffer(rng.bytes(4 * levels.size), "<u4").reshape(levels.shape)
    index = np.left_shift(levels, 8, dtype=np.uint16)
    index |= (raw >> np.uint32(24)).astype(np.uint16)
    places = index.astype(np.intp)
    keep = raw.astype(np.uint16) < tables.threshold.take(places)
    chosen = np.where(keep, index, tables.alias.take(places))
    return tables.noise.take(chosen.astype(np.intp))

"""How certain a mean over images is: bootstrap intervals, and a paired permutation test.

Images are the units that are drawn anew; an image's value is its mean over seeds. N images, K columns of values,
R resamples.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

Values = NDArray[np.float64]

CHUNK = 2_000_000
"""Numbers that are drawn at a time."""

EXACT = 13
"""Images up to which all 2^N signs are tried."""

FEW = 10
"""Images below which an interval is rough."""


@dataclass(frozen=True)
class Interval:
    """From ``low`` to ``high``; both NaN where there are fewer than two images."""

    low: float
    high: float


def bootstrap(values: Values, *, confidence: float, resamples: int, seed: int) -> list[Interval]:
    """Intervals of the columns' means by the bias-corrected and accelerated bootstrap (BCa; Efron, JASA 82, 1987).

    All columns are resampled alike.

    Args:
        values: (N, K), finite.
        confidence: such as 0.95.
        resamples: R.
        seed: of the resampling.
    """
    normal = NormalDist()
    n, columns = values.shape
    if n < 2:
        return [Interval(math.nan, math.nan)] * columns
    # Around the mean, so that the sums round little.
    means = values.mean(0)
    centred = values - means
    rng = np.random.default_rng(seed)
    drawn = np.empty((resamples, columns))
    step = max(1, CHUNK // n)
    for start in range(0, resamples, step):
        stop = min(resamples, start + step)
        counts = rng.multinomial(n, np.full(n, 1 / n), size=stop - start)
        drawn[start:stop] = counts @ centred / n
    found = []
    tails = (1 - confidence) / 2, (1 + confidence) / 2
    for column in range(columns):
        d, shifts = centred[:, column], drawn[:, column]
        squares = (d**2).sum()
        # Equal but for rounding.
        if np.abs(d).max() <= 1e-12 * max(1.0, abs(means[column])):
            found.append(Interval(float(means[column]), float(means[column])))
            continue
        # Half of those that equal the mean but for rounding.
        near = 1e-12 * np.abs(d).max()
        below = ((shifts < -near).sum() + (shifts <= near).sum()) / (2 * resamples)
        bias = normal.inv_cdf(min(max(below, 0.5 / resamples), 1 - 0.5 / resamples))
        # Of the jackknife's means, which for a mean is the skewness of the values.
        acceleration = (d**3).sum() / (6 * squares**1.5)
        at = (bias + normal.inv_cdf(tail) for tail in tails)
        levels = [normal.cdf(bias + z / (1 - acceleration * z)) for z in at]
        low, high = np.quantile(shifts, levels) + means[column]
        found.append(Interval(float(low), float(high)))
    return found


def paired_p(differences: Values, *, resamples: int, seed: int) -> list[float]:
    """Two-sided p of "the mean difference is 0" by flipping the differences' signs, for each column.

    Exact for up to :data:`EXACT` images; with more, of ``resamples`` random flips, the observed one counted among
    them (Phipson and Smyth, SAGMB 9, 2010), so that p is at least 1 / (R + 1).

    Args:
        differences: (N, K), finite.
    """
    n, columns = differences.shape
    if n == 0:
        return [math.nan] * columns
    # Sums that are equal but for rounding count as equal.
    scale = np.abs(differences).sum(0)
    observed = np.abs(differences.sum(0)) - 1e-12 * scale
    reached = np.zeros(columns)
    exact = n <= EXACT
    total = 2**n if exact else resamples
    rng = np.random.default_rng(seed)
    step = max(1, CHUNK // n)
    for start in range(0, total, step):
        size = min(total, start + step) - start
        if exact:
            flips = (np.arange(start, start + size)[:, None] >> np.arange(n)) & 1
        else:
            flips = rng.integers(0, 2, size=(size, n))
        reached += (np.abs((1 - 2 * flips) @ differences) >= observed).sum(0)
    p = reached / total if exact else (reached + 1) / (total + 1)
    return [float(value) for value in p]


def holm(p: Sequence[float]) -> list[float]:
    """p values adjusted for their number (Holm, 1979)."""
    order = sorted(range(len(p)), key=lambda i: p[i])
    adjusted, most = [math.nan] * len(p), 0.0
    for rank, i in enumerate(order):
        most = max(most, min(1.0, p[i] * (len(p) - rank)))
        adjusted[i] = most
    return adjusted

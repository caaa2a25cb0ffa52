"""How sure a preference rate is, and how far volunteers agree."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Hashable, Iterable, Sequence

import numpy as np

Z95 = 1.959963984540054
"""The normal distribution's 97.5 % quantile."""


def wilson(wins: int, votes: int, z: float = Z95) -> tuple[float, float]:
    """Wilson's score interval of a proportion (E. B. Wilson, JASA 22, 1927); (0, 1) without votes."""
    if votes == 0:
        return 0.0, 1.0
    share = wins / votes
    centre = (share + z * z / (2 * votes)) / (1 + z * z / votes)
    half = z / (1 + z * z / votes) * math.sqrt(share * (1 - share) / votes + z * z / (4 * votes * votes))
    return (0.0 if wins == 0 else centre - half), (1.0 if wins == votes else centre + half)


def resampled_interval(groups: Sequence[tuple[int, int]], repeats: int = 2000, seed: int = 0) -> tuple[float, float]:
    """The 2.5 % and 97.5 % percentiles of the share when whole volunteers are drawn with replacement.

    The answers of one volunteer are alike, which Wilson's interval does not know.

    Args:
        groups: (wins, votes) of each volunteer; NaN comes back where there are fewer than two of them.
        repeats: draws.
        seed: of the draws.
    """
    if len(groups) < 2:
        return math.nan, math.nan
    table = np.array(groups, float)
    drawn = np.random.default_rng(seed).integers(0, len(table), (repeats, len(table)))
    wins, votes = table[drawn].sum(1).T
    low, high = np.percentile(wins / votes, [2.5, 97.5])
    return float(low), float(high)


def krippendorff_alpha(units: Iterable[Sequence[Hashable]]) -> float:
    """Krippendorff's α for nominal values (K. Krippendorff, Computing Krippendorff's Alpha-Reliability, 2011).

    α = 1 − observed / expected disagreement: 1 is full agreement, 0 what chance gives. Not every volunteer need
    have judged every unit, which is why it is taken rather than Fleiss' κ.

    Args:
        units: the values that each unit (a pair of pictures) was given; those with one value say nothing.

    Returns:
        α; NaN where no unit has two values, or all values are the same.
    """
    counts = [Counter(values) for values in units if len(values) > 1]
    totals: Counter[Hashable] = Counter()
    for count in counts:
        totals.update(count)
    n = totals.total()
    # Ordered pairs of different values, within units and over all; each unit's pairs weigh 1 / (its values − 1).
    observed = sum((c.total() ** 2 - sum(k * k for k in c.values())) / (c.total() - 1) for c in counts)
    expected = n * n - sum(k * k for k in totals.values())
    return math.nan if expected == 0 else 1 - (n - 1) * observed / expected


def pairwise_agreement(units: Iterable[Sequence[Hashable]]) -> float:
    """The share of pairs of answers to one unit that are the same; NaN where no unit has two."""
    same = pairs = 0
    for values in units:
        pairs += math.comb(len(values), 2)
        same += sum(math.comb(k, 2) for k in Counter(values).values())
    return same / pairs if pairs else math.nan

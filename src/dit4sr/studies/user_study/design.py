"""The design: which comparisons a volunteer gets, on which sides, and in which order."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from random import Random


@dataclass(frozen=True)
class Comparison:
    """Two results for one photo.

    Attributes:
        id: of it.
        photo: whose results they are.
        competitor: the method beside ours; None for an attention check, where "ours" is the intact picture.
    """

    id: int
    photo: int
    competitor: int | None


@dataclass(frozen=True)
class Step:
    """What a volunteer sees at once.

    Attributes:
        comparison: its id.
        ours_left: whether our result is the left one.
    """

    comparison: int
    ours_left: bool


Sides = tuple[int, int]
"""How often our result was shown on the left, and on the right."""


def plan(
    comparisons: Sequence[Comparison], shown: Mapping[int, Sides], length: int, checks: int, rng: Random
) -> list[Step]:
    """The steps of one volunteer.

    Comparisons that were shown least come first, so that their counts stay within one of each other; among those,
    ones whose competitor and photo this volunteer has met least; among those, a random one. Our result goes to the
    side where that comparison has had it less often, then to the side where this volunteer has it less often, then
    to a random one. The order is random. Attention checks are drawn by the same rules; one lies at a random place
    in each of as many equal parts of the way, and none comes first.

    Args:
        comparisons: all of the study, its attention checks among them.
        shown: comparison → sides so far, over all volunteers.
        length: comparisons for the volunteer, besides the attention checks; all where there are fewer.
        checks: attention checks for the volunteer; all where there are fewer.
        rng: the source of chance.
    """
    real = _choose([c for c in comparisons if c.competitor is not None], shown, length, rng)
    attention = _choose([c for c in comparisons if c.competitor is None], shown, checks, rng)
    steps = _sides(real, shown, rng)
    rng.shuffle(steps)
    # From the back, so that the places in front keep their numbers.
    for number, step in reversed(list(enumerate(_sides(attention, shown, rng)))):
        first = max(1, number * len(steps) // len(attention))
        last = max(first, (number + 1) * len(steps) // len(attention))
        steps.insert(rng.randint(first, last), step)
    return steps


def _choose(candidates: list[Comparison], shown: Mapping[int, Sides], count: int, rng: Random) -> list[Comparison]:
    """The least shown of the candidates, spread over competitors and photos."""
    left = {c: (sum(shown.get(c.id, (0, 0))), rng.random()) for c in candidates}
    competitors: Counter[int | None] = Counter()
    photos: Counter[int] = Counter()
    chosen = []
    for _ in range(min(count, len(candidates))):
        best = min(left, key=lambda c: (left[c][0], competitors[c.competitor] + photos[c.photo], left[c][1]))
        del left[best]
        competitors[best.competitor] += 1
        photos[best.photo] += 1
        chosen.append(best)
    return chosen


def _sides(chosen: list[Comparison], shown: Mapping[int, Sides], rng: Random) -> list[Step]:
    """The chosen ones with the side of our result."""
    steps, balance = [], 0  # balance: how many more times on the left
    # Those whose side is given come first, so that the free ones can make up for them.
    lean = {c.id: shown.get(c.id, (0, 0))[0] - shown.get(c.id, (0, 0))[1] for c in chosen}
    for c in sorted(chosen, key=lambda c: lean[c.id] == 0):
        lean_first = lean[c.id] or balance
        ours_left = lean_first < 0 if lean_first else rng.random() < 0.5
        balance += 1 if ours_left else -1
        steps.append(Step(c.id, ours_left))
    return steps

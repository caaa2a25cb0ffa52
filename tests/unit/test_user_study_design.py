"""The design: balanced over pairs and sides, random for each volunteer."""

from collections import Counter, defaultdict
from random import Random

import pytest

from dit4sr.studies.user_study.design import Comparison, Step, plan

PHOTOS, COMPETITORS = 10, 3
REAL = [Comparison(PHOTOS * c + p, p, c) for c in range(COMPETITORS) for p in range(PHOTOS)]
CHECKS = [Comparison(1000 + p, p, None) for p in range(PHOTOS)]


def recruit(count: int, length: int, checks: int, seed: int = 0) -> list[list[Step]]:
    """The steps of volunteers who come one after another."""
    rng, shown, all_steps = Random(seed), defaultdict(lambda: (0, 0)), []
    for _ in range(count):
        steps = plan([*REAL, *CHECKS], shown, length, checks, rng)
        for step in steps:
            left, right = shown[step.comparison]
            shown[step.comparison] = (left + step.ours_left, right + (not step.ours_left))
        all_steps.append(steps)
    return all_steps


def test_pairs_and_sides_are_balanced() -> None:
    for count in (3, 7, 20):
        steps = [step for volunteer in recruit(count, 8, 2) for step in volunteer]
        counts = Counter(s.comparison for s in steps)
        real = [counts[c.id] for c in REAL]
        assert sum(real) == 8 * count and max(real) - min(real) <= 1
        checks = [counts[c.id] for c in CHECKS]
        assert sum(checks) == 2 * count and max(checks) - min(checks) <= 1
        left = Counter(s.comparison for s in steps if s.ours_left)
        assert all(abs(2 * left[c] - counts[c]) <= 1 for c in counts)


def test_a_volunteer_meets_all_competitors_and_photos_alike() -> None:
    for steps in recruit(12, 9, 0):
        by_id = {c.id: c for c in REAL}
        assert len({s.comparison for s in steps}) == 9
        competitors = Counter(by_id[s.comparison].competitor for s in steps)
        assert max(competitors.values()) - min(competitors.values()) <= 3
    first = recruit(1, 9, 0)[0]
    assert set(Counter(by_id[s.comparison].competitor for s in first).values()) == {3}
    assert len({by_id[s.comparison].photo for s in first}) == 9
    assert sum(s.ours_left for s in first) in (4, 5)


def test_order_and_sides_differ_between_volunteers() -> None:
    everything = recruit(30, len(REAL), 0)
    assert len({tuple(s.comparison for s in steps) for steps in everything}) == 30
    firsts = Counter(steps[0].comparison for steps in everything)
    assert max(firsts.values()) <= 6  # no pair is first as a rule
    start = [plan(REAL, {}, 1, 0, Random(seed))[0].ours_left for seed in range(200)]
    assert 70 < sum(start) < 130


def test_attention_checks_are_spread_and_never_first() -> None:
    ids = {c.id for c in CHECKS}
    for steps in recruit(40, 12, 3):
        places = [i for i, s in enumerate(steps) if s.comparison in ids]
        assert len(places) == 3 and places[0] > 0
        assert places[0] <= 4 and places[2] >= 10
        assert len({steps[i].comparison for i in places}) == 3
    places = Counter(i for steps in recruit(60, 12, 1) for i, s in enumerate(steps) if s.comparison in ids)
    assert len(places) > 6  # not at one known place


@pytest.mark.parametrize(("length", "checks", "expected"), [(1, 0, 1), (500, 0, 30), (4, 50, 14), (1, 2, 3)])
def test_lengths(length: int, checks: int, expected: int) -> None:
    assert len(plan([*REAL, *CHECKS], {}, length, checks, Random(0))) == expected


def test_what_was_shown_least_comes_next() -> None:
    shown = {c.id: (1, 1) for c in REAL if c.id not in (3, 17)} | {17: (0, 1)}
    first = plan(REAL, shown, 2, 0, Random(1))
    assert {s.comparison for s in first} == {3, 17}
    assert {s.comparison: s.ours_left for s in first}[17]

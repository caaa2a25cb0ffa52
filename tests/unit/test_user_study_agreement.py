"""Intervals and agreement against published values and brute force."""

import itertools
import math

import numpy as np
import pytest

from dit4sr.studies.user_study.agreement import krippendorff_alpha, pairwise_agreement, resampled_interval, wilson

# Hayes & Krippendorff, Answering the Call for a Standard Reliability Measure for Coding Data (2007): four observers,
# twelve units, gaps; nominal alpha 0.743.
OBSERVERS = ["123321412...", "1233224125.3", ".3332342251.", "12332441251."]


def units() -> list[list[str]]:
    assert all(len(row) == 12 for row in OBSERVERS)
    return [[row[i] for row in OBSERVERS if row[i] != "."] for i in range(12)]


def test_alpha_is_the_published_one() -> None:
    assert krippendorff_alpha(units()) == pytest.approx(0.743, abs=5e-4)


def test_alpha_at_its_ends() -> None:
    assert krippendorff_alpha([[1, 1, 1], [0, 0], [1, 1]]) == 1
    assert krippendorff_alpha([[0, 1], [1, 0], [0, 1]]) < 0
    assert math.isnan(krippendorff_alpha([[1, 1], [1, 1, 1]]))
    assert math.isnan(krippendorff_alpha([[1], [0]])) and math.isnan(krippendorff_alpha([]))
    rng = np.random.default_rng(0)
    assert abs(krippendorff_alpha([list(rng.integers(0, 2, 5)) for _ in range(2000)])) < 0.03


def test_pairwise_agreement_counts_pairs() -> None:
    values = [[1, 1, 0, 1], [0, 0], [1], [0, 1]]
    pairs = [pair for unit in values for pair in itertools.combinations(unit, 2)]
    assert pairwise_agreement(values) == sum(a == b for a, b in pairs) / len(pairs)
    assert math.isnan(pairwise_agreement([[1], []]))


@pytest.mark.parametrize(("wins", "votes"), [(0, 10), (1, 10), (7, 10), (10, 10), (81, 263), (500, 1000)])
def test_wilson_is_scipys(wins: int, votes: int) -> None:
    from scipy.stats import binomtest

    expected = binomtest(wins, votes).proportion_ci(0.95, method="wilson")
    assert wilson(wins, votes) == pytest.approx((expected.low, expected.high), abs=1e-12)


def test_wilson_without_votes() -> None:
    assert wilson(0, 0) == (0, 1)


def test_resampling_knows_that_a_volunteers_answers_are_alike() -> None:
    # Ten volunteers, each of one mind: ten independent answers, not a hundred.
    low, high = resampled_interval([(10, 10)] * 5 + [(0, 10)] * 5)
    alone = wilson(50, 100)
    assert high - low > 1.8 * (alone[1] - alone[0]) and low < 0.5 < high
    independent = resampled_interval([(5, 10)] * 10)
    assert independent == (0.5, 0.5)
    assert all(map(math.isnan, resampled_interval([(3, 4)])))

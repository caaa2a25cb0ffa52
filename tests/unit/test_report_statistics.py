"""Intervals and tests of reports, against scipy and at their limits."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from report_folders import entry, merged, write_run

from dit4sr.evaluation.reports.merging import Options
from dit4sr.evaluation.reports.resampling import bootstrap, holm, paired_p


def test_bootstrap_is_scipy_s() -> None:
    from scipy import stats

    skewed = np.random.default_rng(0).gamma(1.5, size=(40, 2)) * [1.0, 30.0]
    ours = bootstrap(skewed, confidence=0.9, resamples=10_000, seed=1)
    for column, found in zip(skewed.T, ours, strict=True):
        wanted = stats.bootstrap(
            (column,), np.mean, confidence_level=0.9, n_resamples=10_000, rng=1
        ).confidence_interval
        # Within the noise of drawing.
        assert (found.low, found.high) == pytest.approx((wanted.low, wanted.high), abs=0.02 * column.std())
    assert ours == bootstrap(skewed, confidence=0.9, resamples=10_000, seed=1)
    assert ours != bootstrap(skewed, confidence=0.9, resamples=10_000, seed=2)


def test_bootstrap_covers() -> None:
    """Of 95% intervals of normal samples about 95% hold the mean."""
    rng = np.random.default_rng(3)
    intervals = bootstrap(rng.normal(size=(60, 400)), confidence=0.95, resamples=1000, seed=0)
    covered = np.mean([i.low <= 0 <= i.high for i in intervals])
    assert 0.91 <= covered <= 0.98


def test_bootstrap_at_its_limits() -> None:
    (constant,) = bootstrap(np.full((5, 1), 3.25), confidence=0.95, resamples=100, seed=0)
    assert (constant.low, constant.high) == (3.25, 3.25)
    (one,) = bootstrap(np.array([[1.0]]), confidence=0.95, resamples=100, seed=0)
    assert math.isnan(one.low)


@pytest.mark.parametrize("n", [8, 13, 30])
def test_paired_test_is_scipy_s(n: int) -> None:
    from scipy import stats

    rng = np.random.default_rng(n)
    differences = rng.normal(size=(n, 3)) + [0.0, 0.5, 3.0]
    ours = paired_p(differences, resamples=20_000, seed=0)
    for column, p in zip(differences.T, ours, strict=True):
        test = stats.permutation_test(
            (column, np.zeros(n)),
            lambda x, y, axis: np.mean(x - y, axis=axis),
            permutation_type="samples",
            n_resamples=20_000 if n > 13 else np.inf,
            vectorized=True,
            rng=0,
        )
        assert p == pytest.approx(test.pvalue, abs=0.012 if n > 13 else 1e-12)


def test_paired_test_at_its_limits() -> None:
    assert paired_p(np.zeros((6, 1)), resamples=100, seed=0) == [1.0]
    assert paired_p(np.ones((3, 1)), resamples=100, seed=0) == [0.25]
    assert paired_p(np.ones((50, 1)), resamples=999, seed=0) == [0.001]
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])


def test_differences_are_paired(here: Path) -> None:
    """A difference far smaller than the images' own spread is found, for it is the same on every image."""
    write_run(here / "a", "x", {"psnr": 20.0})
    write_run(here / "b", "y", {"psnr": 20.05})
    (table,) = merged("a", "b", options=Options(resamples=500, against="x"))
    (found,) = entry(table, "y").compared.values()
    assert found.difference == pytest.approx(0.05)
    assert (found.interval.low, found.interval.high) == pytest.approx((0.05, 0.05))
    # 2 / 2^12, two comparisons in the column.
    assert found.p == pytest.approx(2 / 4096) and found.adjusted == pytest.approx(4 / 4096)
    assert entry(table, "x").compared == {}

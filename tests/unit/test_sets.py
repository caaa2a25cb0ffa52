"""FID: the distance of two sets of features, and what is said of few images."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.linalg import sqrtm

from dit4sr.evaluation.sets import ENOUGH, frechet_distance, warning_for


def gaussian(n: int, mean: np.ndarray, covariance: np.ndarray, seed: int) -> np.ndarray:
    """A sample that has this mean and covariance exactly."""
    x = np.random.default_rng(seed).normal(size=(n, len(mean)))
    x -= x.mean(0)
    whitened = x @ np.linalg.inv(np.linalg.cholesky(np.cov(x, rowvar=False))).T
    return whitened @ np.linalg.cholesky(covariance).T + mean


def literal(a: np.ndarray, b: np.ndarray) -> float:
    """As arXiv 1706.08500 writes it."""
    ca, cb = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    return float(np.sum((a.mean(0) - b.mean(0)) ** 2) + np.trace(ca + cb - 2 * sqrtm(ca @ cb).real))


def test_independent_features_have_a_closed_form() -> None:
    """Diagonal covariances: |m_a − m_b|² + Σ (s_a − s_b)²."""
    deviations = np.array([1.0, 2.0, 0.5, 3.0]), np.array([2.0, 2.0, 1.5, 0.1])
    means = np.zeros(4), np.array([1.0, -2.0, 0.0, 0.5])
    a, b = (gaussian(n, m, np.diag(s**2), n) for n, m, s in zip((50, 80), means, deviations, strict=True))
    expected = 1 + 4 + 0.25 + np.square(deviations[0] - deviations[1]).sum()
    assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-9)
    assert frechet_distance(b, a) == pytest.approx(expected, rel=1e-9)


def test_correlated_features_are_as_the_paper_says() -> None:
    rng = np.random.default_rng(0)
    a, b = (rng.normal(size=(n, 12)) @ rng.normal(size=(12, 12)) + rng.normal(size=12) for n in (40, 65))
    assert frechet_distance(a, b) == pytest.approx(literal(a, b), rel=1e-8)
    assert frechet_distance(a[:13], b) == pytest.approx(literal(a[:13], b), rel=1e-6)


def test_fewer_images_than_features() -> None:
    """As on every benchmark of the field: the covariances are singular, the distance is not."""
    rng = np.random.default_rng(1)
    a, b = rng.normal(size=(5, 300)), rng.normal(size=(7, 300)) + 0.1
    assert frechet_distance(a, a) == pytest.approx(0, abs=1e-9)
    assert frechet_distance(a, a + 0.2) == pytest.approx(300 * 0.04)
    # The features' space may be turned without a change: into the twelve dimensions that hold both samples.
    basis = np.linalg.qr(np.concatenate([a, b]).T)[0]
    assert frechet_distance(a, b) == pytest.approx(frechet_distance(a @ basis, b @ basis))
    assert frechet_distance(a, b) > 0


def test_few_images_are_warned_of() -> None:
    assert "fewer than 1000" in str(warning_for(ENOUGH - 1))
    assert warning_for(ENOUGH) is None

"""Metrics of two sets of images: the Fréchet distance of their features (FID, arXiv 1706.08500)."""

from __future__ import annotations

import contextlib
import io
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dit4sr.evaluation.catalogue import KNOWN

Features = NDArray[np.floating]

LEAST = 2
"""Images: one has no covariance."""

ENOUGH = 1000
"""Images; with fewer, FID says more about their number than about their quality."""


def warning_for(n: int) -> str | None:
    """What must be said of an FID over so few images."""
    if n >= ENOUGH:
        return None
    return f"FID over fewer than {ENOUGH} images is biased and noisy: compare it with nothing"


def fid(restored: Sequence[Path], truths: Sequence[Path], config: Mapping[str, Any], device: str) -> float:
    """FID between restored images and ground truths, by pyiqa's Inception v3 features.

    Args:
        restored, truths: PNG files of the two sets.
        config: configs/metrics.
        device: where to compute.

    Raises:
        MissingWeights: Inception's weights are not here or cannot be loaded.
    """
    import torch

    from dit4sr.evaluation.weights import WeightsFolder, create_network

    metric = create_network("fid", KNOWN["fid"], WeightsFolder.from_config(config), device)
    from pyiqa.archs.fid_arch import get_folder_features

    features = []
    with tempfile.TemporaryDirectory(prefix="dit4sr-fid-") as temporary:
        for name, files in (("restored", restored), ("truth", truths)):
            folder = Path(temporary) / name
            folder.mkdir()
            for path in files:
                (folder / path.name).symlink_to(path.resolve())
            with torch.inference_mode(), contextlib.redirect_stdout(io.StringIO()):
                features.append(
                    get_folder_features(
                        str(folder),
                        metric.net.model,
                        num_workers=0,
                        batch_size=8,
                        device=torch.device(device),
                        mode="clean",
                        verbose=False,
                    )
                )
    return frechet_distance(*features)


def frechet_distance(a: Features, b: Features) -> float:
    """Squared Fréchet distance of the Gaussians that have the means and covariances of two samples.

    |m_a − m_b|² + tr C_a + tr C_b − 2 tr (C_a C_b)^½. With C = XᵀX, X the centred sample over √(n − 1), the last trace
    is the sum of the singular values of X_a X_bᵀ. So nothing has to be inverted or made regular where there are fewer
    images than features, and no square root of a large singular matrix is taken.

    Args:
        a, b: (n, features) and (m, features); n and m at least LEAST.
    """
    means, samples = [], []
    for sample in (np.asarray(x, np.float64) for x in (a, b)):
        assert len(sample) >= LEAST, "a covariance needs two samples"
        means.append(sample.mean(0))
        samples.append((sample - means[-1]) / np.sqrt(len(sample) - 1))
    if all(len(x) > x.shape[1] for x in samples):  # the same singular values, of a smaller matrix
        samples = [np.linalg.qr(x, mode="r") for x in samples]
    cross = np.linalg.svd(samples[0] @ samples[1].T, compute_uv=False).sum()
    traces = sum(float(np.square(x).sum()) for x in samples)
    return max(0.0, float(np.square(means[0] - means[1]).sum() + traces - 2 * cross))

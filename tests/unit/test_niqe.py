"""NIQE's two float32 steps: what they compute, to the bit, and that the published values come out."""

from __future__ import annotations

import csv
import hashlib
from pathlib import Path

import numpy as np
import pytest
import torch

from dit4sr.data.images import read_image
from dit4sr.evaluation.calibration import known_pair
from dit4sr.evaluation.metrics import build_metrics
from dit4sr.evaluation.niqe import halved, luma_levels

SHARED = Path(__file__).parents[3] / "shared"


def digest(values: np.ndarray) -> str:
    return hashlib.sha256(values.tobytes()).hexdigest()[:16]


def test_luma_is_rounded_to_whole_levels() -> None:
    image = np.random.default_rng(0).integers(0, 256, (200, 300, 3), dtype=np.uint8)
    exact = image.astype(float) @ [0.299, 0.587, 0.114]
    levels = luma_levels(image)
    assert levels.dtype == np.float32
    assert np.array_equal(levels, np.rint(levels))
    assert np.abs(levels - exact).max() <= 0.5 + 1e-9
    gray = np.arange(256, dtype=np.uint8)[None, :, None].repeat(3, 2)
    assert np.array_equal(luma_levels(gray)[0], np.arange(256))


def test_ties_fall_as_on_a_gpu() -> None:
    """0.299 R + 0.587 G + 0.114 B of these is a half; where it falls is the last bit of the order of the sum."""
    up = np.array([[(0, 0, 250), (0, 32, 94), (0, 46, 57)]], np.uint8)
    down = np.array([[(0, 14, 213), (0, 110, 245), (1, 13, 5)]], np.uint8)
    assert luma_levels(up).tolist() == [[29, 30, 34]]
    assert luma_levels(down).tolist() == [[32, 92, 8]]


def test_both_steps_are_the_same_to_the_bit_on_every_machine() -> None:
    levels = luma_levels(known_pair()[0])
    assert digest(levels) == "e66d2adfac40c6eb"
    small = halved(torch.from_numpy(levels).double()[None, None] / 255, scale=0.5, antialiasing=True)
    assert digest(small.float().numpy()) == "54a26627e200af84"


@pytest.mark.parametrize("size", [(96, 192), (288, 96), (8, 10)])
def test_halving_is_pyiqa_s_up_to_the_order_of_the_sum(size: tuple[int, int]) -> None:
    from pyiqa.matlab_utils import imresize

    image = torch.from_numpy(np.random.default_rng(1).random((1, 1, *size)))
    expected = imresize(image, scale=0.5, antialiasing=True)
    assert halved(image, scale=0.5, antialiasing=True).shape == expected.shape
    assert float((halved(image, scale=0.5, antialiasing=True) - expected).abs().max()) < 1e-6


def test_the_value_is_pyiqa_s(tmp_path: Path) -> None:
    """On an image whose luma has no ties, pyiqa alone gives the same to the order of its float32 sums."""
    import pyiqa
    from scipy.io import savemat

    rng = np.random.default_rng(2)
    root = rng.normal(size=(36, 36))
    savemat(tmp_path / "niqe.mat", {"mu_prisparam": rng.normal(size=(1, 36)), "cov_prisparam": root @ root.T})
    image = rng.integers(0, 256, (192, 200, 1), dtype=np.uint8).repeat(3, 2)
    (metric,) = build_metrics(
        {"names": ["niqe"], "protocol": "ycbcr", "border": None, "niqe_parameters": str(tmp_path / "niqe.mat")}
    ).metrics
    theirs = pyiqa.create_metric("niqe", device="cpu", pretrained_model_path=str(tmp_path / "niqe.mat"))
    tensor = torch.from_numpy(image).permute(2, 0, 1)[None].float() / 255
    assert metric(image) == pytest.approx(float(theirs(tensor)), rel=1e-4)


@pytest.mark.skipif(not (SHARED / "data" / "results").is_dir(), reason="the published restorations are not here")
@pytest.mark.parametrize("name", ["Nikon_024_LR4", "Canon_011_LR4"])
def test_the_published_log_is_reproduced(name: str) -> None:
    """Of the images on which another order of either sum is off by 3e-4 to 3e-3."""
    results = SHARED / "data" / "results"
    with (results / "osediff_realsr_per_image.csv").open(newline="") as file:
        published = {Path(row["image"]).stem: float(row["niqe"]) for row in csv.DictReader(file)}
    parameters = str(SHARED / "weights" / "niqe_pris_params.npz")
    (metric,) = build_metrics(
        {"names": ["niqe"], "protocol": "ycbcr", "border": None, "niqe_parameters": parameters}
    ).metrics
    assert metric(read_image(results / "osediff_realsr" / f"{name}.png")) == pytest.approx(published[name], abs=3e-5)

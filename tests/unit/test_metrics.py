"""Metrics against independent references, closed forms, and a published log."""

from __future__ import annotations

import csv
import os
from pathlib import Path

import numpy as np
import pytest
from skimage.metrics import structural_similarity
from tiny_checkpoint import load, picture

from dit4sr.errors import UserError
from dit4sr.evaluation.metrics import Metric, build_metrics, gradient_energy, luma, psnr_y, ssim_y


@pytest.fixture(scope="module")
def pair() -> tuple[np.ndarray, np.ndarray]:
    truth = picture(60, 84, 1)
    noise = np.random.default_rng(0).normal(0, 12, truth.shape)
    return np.clip(truth + noise, 0, 255).astype(np.uint8), truth


def metrics(protocol: str = "ycbcr", border: int = 0) -> dict[str, Metric]:
    names = ["psnr", "ssim", "gradient_energy"]
    return {m.name: m for m in build_metrics({"names": names, "protocol": protocol, "border": border})}


def psnr_of(a: np.ndarray, b: np.ndarray) -> float:
    return float(10 * np.log10(1 / np.mean((a - b) ** 2)))


def studio_luma(image: np.ndarray) -> np.ndarray:
    # ITU-R BT.601: E'Y = 0.299 R + 0.587 G + 0.114 B, quantised to 219 E'Y + 16.
    return (219 * (image.astype(float) / 255 @ [0.299, 0.587, 0.114]) + 16) / 255


def test_psnr_on_studio_luma(pair: tuple[np.ndarray, np.ndarray]) -> None:
    sr, hq = pair
    expected = psnr_of(studio_luma(sr), studio_luma(hq))
    assert psnr_y(sr, hq) == pytest.approx(expected, abs=1e-3)
    assert metrics()["psnr"](sr, hq) == psnr_y(sr, hq)


def test_psnr_of_the_other_protocols(pair: tuple[np.ndarray, np.ndarray]) -> None:
    sr, hq = pair
    assert metrics("rgb")["psnr"](sr, hq) == pytest.approx(psnr_of(sr / 255, hq / 255), abs=1e-3)
    full_range = [image.astype(float) / 255 @ [0.299, 0.587, 0.114] for image in (sr, hq)]
    assert metrics("yiq")["psnr"](sr, hq) == pytest.approx(psnr_of(*full_range), abs=1e-3)
    # 20·log10(255/219): why a number without its protocol says little.
    assert psnr_y(sr, hq) - metrics("yiq")["psnr"](sr, hq) == pytest.approx(1.322, abs=2e-3)


def test_psnr_of_a_constant_offset() -> None:
    hq = np.full((32, 32, 3), 100, np.uint8)
    # Grey levels 10 apart are 10·219/255 apart in luma.
    assert psnr_y(hq + 10, hq) == pytest.approx(20 * np.log10(255 / (10 * 219 / 255)), abs=1e-3)
    assert psnr_y(hq, hq) == pytest.approx(80)


def test_the_border_is_cut_off(pair: tuple[np.ndarray, np.ndarray]) -> None:
    sr, hq = pair
    metric = metrics(border=4)["psnr"]
    assert metric.border == 4
    assert metric(sr, hq) == psnr_y(sr[4:-4, 4:-4], hq[4:-4, 4:-4])
    assert metric(sr, hq) != psnr_y(sr, hq)
    spoilt = sr.copy()
    spoilt[:4] = 0
    assert metric(spoilt, hq) == metric(sr, hq)


def test_ssim_against_scikit_image(pair: tuple[np.ndarray, np.ndarray]) -> None:
    sr, hq = pair
    a, b = (np.round(studio_luma(image) * 255) for image in (sr, hq))
    _, full = structural_similarity(
        a, b, data_range=255, gaussian_weights=True, sigma=1.5, use_sample_covariance=False, full=True
    )
    # scikit-image's mean leaves out the window's radius too, in its own way; ours is the valid part.
    assert ssim_y(sr, hq) == pytest.approx(full[5:-5, 5:-5].mean(), abs=1e-4)
    assert ssim_y(hq, hq) == pytest.approx(1)


def test_luma_is_the_published_one() -> None:
    image = picture(8, 9, 3)
    assert luma(image) == pytest.approx(studio_luma(image) * 255, abs=0.01)
    assert luma(np.full((1, 1, 3), 255, np.uint8)) == pytest.approx(235)
    assert luma(np.zeros((1, 1, 3), np.uint8)) == pytest.approx(16)


def test_gradient_energy_of_stripes() -> None:
    stripes = np.zeros((16, 16, 3), np.uint8)
    stripes[:, ::2] = 200
    weaker = stripes // 2
    assert gradient_energy(weaker, stripes) == pytest.approx(0.25)
    assert gradient_energy(stripes, stripes) == 1
    # Both axes count: the same stripes turned have the same energy.
    assert gradient_energy(stripes.transpose(1, 0, 2), stripes) == pytest.approx(1)
    # One bright column of a ramp by hand: E = mean of squared differences along each axis.
    step = np.zeros((4, 5, 3), np.uint8)
    step[:, 3:] = 255
    assert gradient_energy(step, stripes) == pytest.approx((219**2 / 4) / ((200 * 219 / 255) ** 2))


def test_gradient_energy_of_a_flat_truth_is_undefined() -> None:
    flat = np.full((8, 8, 3), 7, np.uint8)
    assert np.isnan(gradient_energy(picture(8, 8, 0), flat))


def test_smoothing_lowers_the_gradient_energy_and_noise_raises_it(
    pair: tuple[np.ndarray, np.ndarray],
) -> None:
    sr, hq = pair
    smooth = ((hq[:-1].astype(int) + hq[1:]) // 2).astype(np.uint8)
    assert gradient_energy(sr, hq) > 1 > gradient_energy(smooth, hq[:-1])


def test_images_of_different_sizes_are_refused() -> None:
    with pytest.raises(ValueError, match="cannot be compared"):
        metrics()["psnr"](picture(20, 20, 0), picture(20, 21, 0))
    with pytest.raises(ValueError, match="11 pixels"):
        ssim_y(picture(8, 20, 0), picture(8, 20, 1))


def test_rows_state_channel_and_protocol() -> None:
    stated = {name: (m.protocol, m.channel, m.border) for name, m in metrics("rgb", 2).items()}
    assert stated == {
        "psnr": ("rgb", "RGB", 2),
        "ssim": ("rgb", "RGB", 2),
        "gradient_energy": ("ycbcr", "Y", 2),
    }


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"names": ["psnr", "beauty"]}, "unknown beauty"),
        ({"protocol": "ycc"}, "choose one of ycbcr, yiq, rgb"),
        ({"border": -1}, "border=-1"),
    ],
)
def test_wrong_configs_are_refused(changes: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        build_metrics({"names": ["psnr"], "protocol": "ycbcr", "border": 0} | changes)


def shared() -> Path | None:
    """Published restorations of RealSR with their log, where somebody has put them beside the checkout."""
    root = Path(os.environ.get("DIT4SR_SHARED", Path(__file__).resolve().parents[3] / "shared"))
    return root / "data" if (root / "data" / "results" / "osediff_realsr_per_image.csv").is_file() else None


@pytest.mark.skipif(shared() is None, reason="the published restorations are not here (DIT4SR_SHARED)")
def test_against_a_published_log() -> None:
    data = shared()
    assert data is not None
    with (data / "results" / "osediff_realsr_per_image.csv").open(newline="") as file:
        published = list(csv.DictReader(file))[::20]
    for row in published:
        sr = load(data / "results" / "osediff_realsr" / row["image"])
        hq = load(data / "benchmarks" / "RealSRVal_crop128" / "test_HR" / row["image"])
        assert psnr_y(sr, hq) == pytest.approx(float(row["psnr"]), abs=1e-4)
        assert ssim_y(sr, hq) == pytest.approx(float(row["ssim"]), abs=1e-4)

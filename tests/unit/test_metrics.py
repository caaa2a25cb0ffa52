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
from dit4sr.evaluation.metrics import PROTOCOLS, Metric, build_metrics, gradient_energy, luma, psnr_y, ssim_y


@pytest.fixture(scope="module")
def pair() -> tuple[np.ndarray, np.ndarray]:
    truth = picture(60, 84, 1)
    noise = np.random.default_rng(0).normal(0, 12, truth.shape)
    return np.clip(truth + noise, 0, 255).astype(np.uint8), truth


def metrics(protocol: str = "ycbcr", border: int | None = None) -> dict[str, Metric]:
    names = ["psnr", "ssim", "gradient_energy"]
    return {m.name: m for m in build_metrics({"names": names, "protocol": protocol, "border": border}).metrics}


def psnr_of(a: np.ndarray, b: np.ndarray) -> float:
    return float(10 * np.log10(1 / np.mean((a - b) ** 2)))


def studio_luma(image: np.ndarray) -> np.ndarray:
    # ITU-R BT.601: E'Y = 0.299 R + 0.587 G + 0.114 B, quantised to 219 E'Y + 16.
    return (219 * (image.astype(float) / 255 @ [0.299, 0.587, 0.114]) + 16) / 255


def full_range_luma(image: np.ndarray) -> np.ndarray:
    return image.astype(float) / 255 @ [0.299, 0.587, 0.114]


def reference_ssim(a: np.ndarray, b: np.ndarray) -> float:
    """scikit-image's SSIM of (H, W, C) in [0, 255], over the windows inside the image, mean over channels."""
    maps = [
        structural_similarity(
            a[..., c],
            b[..., c],
            data_range=255,
            gaussian_weights=True,
            sigma=1.5,
            use_sample_covariance=False,
            full=True,
        )[1]
        for c in range(a.shape[-1])
    ]
    return float(np.mean([m[5:-5, 5:-5] for m in maps]))


PLANES = {
    "ycbcr": lambda image: studio_luma(image)[..., None],
    "yiq": lambda image: full_range_luma(image)[..., None],
    "rgb": lambda image: image / 255,
}


@pytest.mark.parametrize("protocol", list(PROTOCOLS))
def test_psnr_and_ssim_of_every_protocol_against_closed_form_and_scikit_image(
    pair: tuple[np.ndarray, np.ndarray], protocol: str
) -> None:
    name, _, crop = protocol.partition("_crop")
    cut = int(crop or 0)
    sr, hq = (PLANES[name](image)[cut : image.shape[0] - cut, cut : image.shape[1] - cut] for image in pair)
    found = metrics(protocol)
    assert found["psnr"].border == found["ssim"].border == cut
    assert found["psnr"](*pair) == pytest.approx(psnr_of(sr, hq), abs=1e-3)
    # The protocol rounds to 8 bits before SSIM.
    assert found["ssim"](*pair) == pytest.approx(reference_ssim(np.round(sr * 255), np.round(hq * 255)), abs=1e-4)


def test_no_two_protocols_give_the_same_number(pair: tuple[np.ndarray, np.ndarray]) -> None:
    values = [metrics(protocol)["psnr"](*pair) for protocol in PROTOCOLS]
    assert len({round(v, 4) for v in values}) == len(PROTOCOLS)
    # 20·log10(255/219): why a number without its protocol says little.
    assert values[0] - metrics("yiq")["psnr"](*pair) == pytest.approx(1.322, abs=2e-3)


def test_numpy_s_psnr_and_ssim_are_pyiqa_s(pair: tuple[np.ndarray, np.ndarray]) -> None:
    for restored in (pair[0], 255 - pair[1], pair[1]):
        assert psnr_y(restored, pair[1]) == pytest.approx(metrics()["psnr"](restored, pair[1]), abs=1e-4)
        assert ssim_y(restored, pair[1]) == pytest.approx(metrics()["ssim"](restored, pair[1]), abs=1e-5)


def test_psnr_of_a_constant_offset() -> None:
    hq = np.full((32, 32, 3), 100, np.uint8)
    # Grey levels 10 apart are 10·219/255 apart in luma.
    expected = {"ycbcr": 20 * np.log10(255 / (10 * 219 / 255)), "yiq": 20 * np.log10(25.5), "rgb": 20 * np.log10(25.5)}
    for protocol, value in expected.items():
        assert metrics(protocol)["psnr"](hq + 10, hq) == pytest.approx(value, abs=1e-3)
        assert metrics(protocol)["psnr"](hq, hq) == pytest.approx(80)
        assert metrics(protocol)["ssim"](hq, hq) == pytest.approx(1)
    # SSIM of two constants is its luminance term alone.
    c1, a, b = (0.01 * 255) ** 2, 110, 100
    assert metrics("rgb")["ssim"](hq + 10, hq) == pytest.approx((2 * a * b + c1) / (a * a + b * b + c1), abs=1e-6)


def test_the_border_is_cut_off(pair: tuple[np.ndarray, np.ndarray]) -> None:
    sr, hq = pair
    metric, whole = metrics(border=4)["psnr"], metrics()["psnr"]
    assert metric.border == 4
    assert metric(sr, hq) == whole(sr[4:-4, 4:-4], hq[4:-4, 4:-4]) == metrics("ycbcr_crop4")["psnr"](sr, hq)
    assert metric(sr, hq) != whole(sr, hq)
    spoilt = sr.copy()
    spoilt[:4] = 0
    assert metric(spoilt, hq) == metric(sr, hq)
    assert metrics("rgb_crop4", border=0)["psnr"](sr, hq) == metrics("rgb")["psnr"](sr, hq)


def test_several_protocols_in_one_run(pair: tuple[np.ndarray, np.ndarray]) -> None:
    config = {"names": ["psnr", "psnr@rgb", "ssim@yiq_crop4", "psnr@ycbcr_crop4"], "protocol": "ycbcr", "border": None}
    found = build_metrics(config).metrics
    stated = [(m.name, m.protocol, m.channel, m.border, m.data_range) for m in found]
    assert stated == [
        ("psnr", "ycbcr", "Y", 0, "255"),
        ("psnr@rgb", "rgb", "RGB", 0, "255"),
        ("ssim@yiq_crop4", "yiq_crop4", "Y", 4, "255"),
        ("psnr@ycbcr_crop4", "ycbcr_crop4", "Y", 4, "255"),
    ]
    assert found[1](*pair) == metrics("rgb")["psnr"](*pair)


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
    with pytest.raises(ValueError, match="ssim needs 19 pixels a side"):
        metrics("ycbcr_crop4")["ssim"](picture(18, 20, 0), picture(18, 20, 1))
    with pytest.raises(ValueError, match="psnr needs a ground truth"):
        metrics()["psnr"](picture(20, 20, 0))


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
        ({"protocol": "ycc"}, "choose one of ycbcr, ycbcr_crop4, yiq, yiq_crop4, rgb, rgb_crop4"),
        ({"border": -1}, "border=-1"),
        ({"border": "abc"}, "border=abc"),
        ({"names": []}, "give a list"),
        ({"names": ["psnr", "psnr@ycbcr"]}, "psnr twice"),
        ({"names": ["niqe@rgb"]}, "niqe has one protocol"),
        ({"names": ["psnr@xyz"]}, "choose one of"),
        ({"weights_dir": "/nowhere"}, "weights_dir=/nowhere is no folder"),
        ({"niqe_parameters": "/nowhere.npz"}, "niqe_parameters=/nowhere"),
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
    found = metrics()
    with (data / "results" / "osediff_realsr_per_image.csv").open(newline="") as file:
        published = list(csv.DictReader(file))[::40]
    for row in published:
        sr = load(data / "results" / "osediff_realsr" / row["image"])
        hq = load(data / "benchmarks" / "RealSRVal_crop128" / "test_HR" / row["image"])
        assert found["psnr"](sr, hq) == pytest.approx(float(row["psnr"]), abs=1e-4)
        assert found["ssim"](sr, hq) == pytest.approx(float(row["ssim"]), abs=1e-4)

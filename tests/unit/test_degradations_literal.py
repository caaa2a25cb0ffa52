"""Both engines against a literal implementation of the published definitions, pixel by pixel and in distribution."""

import dataclasses
from pathlib import Path

import cv2
import literal_degradation as literal
import numpy as np
import pytest
import torch
from scipy import stats
from skimage import data

from dit4sr.data.degradations import degrade, degrade_batch, draw_parameters, load_preset
from dit4sr.data.degradations.filtering import filter_image, separable_terms, trimmed
from dit4sr.data.degradations.kernels import make_kernel
from dit4sr.data.degradations.poisson import alias_tables, poisson_noise
from dit4sr.data.images import read_image

DISTINCT = ("dit4sr", "stablesr", "osediff", "light")  # realesrgan and seesr have dit4sr's numbers
SHARED = Path(__file__).resolve().parents[3] / "shared" / "data" / "bsds500"
N, SIDE = 60, 80


def crops(photos, n, side):
    rng = np.random.default_rng(5)
    for i in range(n):
        photo = photos[i % len(photos)]
        top, left = (rng.integers(0, size - side + 1) for size in photo.shape[:2])
        yield np.ascontiguousarray(photo[top : top + side, left : left + side])


@pytest.fixture(scope="module")
def images():
    return list(crops((data.astronaut(), data.coffee(), data.chelsea()), N, SIDE))


def kernels(n):
    for seed in range(n):
        p = draw_parameters("dit4sr", seed, 64, 64)
        yield from (make_kernel(k) for k in (p.blur1, p.blur2, p.sinc) if k is not None)


@pytest.mark.parametrize("shape", [(40, 56, 3), (9, 30, 3), (1, 5, 3)])
def test_filtering_is_the_sum_over_the_kernel(shape):
    image = np.random.default_rng(0).random(shape, dtype=np.float32)
    forms = set()
    for kernel in kernels(150):
        expected = cv2.filter2D(image.astype(np.float64), cv2.CV_64F, kernel, borderType=cv2.BORDER_REFLECT_101)
        assert np.abs(filter_image(image, kernel) - expected).max() < 5e-5  # 0.013 of a level
        small = trimmed(kernel)
        forms.add((len(small) < len(kernel), len(separable_terms(small)[0])))
    assert {(True, 1), (False, 1)} < forms  # some were cut, some are products


@pytest.mark.parametrize("v", [1, 2, 16, 256])
def test_poisson_numbers_have_their_law(v):
    tables = alias_tables(v)
    own = tables.threshold.astype(float).reshape(256, 256) / 65535
    probability = own / 256
    alias = tables.alias.reshape(256, 256).astype(int)
    assert (alias >> 8 == np.arange(256)[:, None]).all()
    np.add.at(probability, (alias >> 8, alias & 255), (1 - own) / 256)
    count = np.rint((tables.noise.reshape(256, 256) + np.arange(256)[:, None] / 255) * v)
    expected = stats.poisson.pmf(count, np.arange(256)[:, None] / 255 * v)
    np.testing.assert_allclose(probability, expected, atol=1e-6)
    assert (expected.sum(axis=1) > 1 - 1e-9).all()

    levels = np.repeat(np.array([0, 3, 90, 200, 255], np.uint8), 40000)[:, None]
    noise = poisson_noise(levels, v, np.random.default_rng(1))
    for part, level in zip(noise.reshape(5, -1), (0, 3, 90, 200, 255), strict=True):
        x = level / 255
        assert abs(part.mean()) < 5 * (x / v / 40000) ** 0.5 + 1e-6
        assert part.var() == pytest.approx(x / v, rel=0.06, abs=1e-9)  # at 3/255 the fourth moment is large
    assert np.abs(np.corrcoef(noise[:-1, 0], noise[1:, 0])[0, 1]) < 0.3


@pytest.mark.parametrize("name", DISTINCT)
def test_without_noise_the_worker_is_the_literal_pipeline(name, images):
    zero = {f"{kind}_range{k}": (0.0, 0.0) for kind in ("noise", "poisson_scale") for k in ("", "2")}
    preset = dataclasses.replace(load_preset(name), **zero)
    errors = []
    for seed, image in enumerate(images[:40]):
        target, lq = degrade(image, preset, seed)
        expected = literal.apply(image, draw_parameters(preset, seed, SIDE, SIDE))
        assert np.abs(target.astype(int) - expected[0]).max() <= 1
        errors.append(np.abs(lq.astype(int) - expected[1]).mean())
    # A coefficient of a JPEG at a rounding boundary may fall on the other side, and an image of a few
    # pixels is padded by each codec in its own way; most images agree exactly.
    assert np.median(errors) < 0.05 and np.mean(np.array(errors) > 1) < 0.1 and max(errors) < 6


def measures(target, lq):
    """PSNR of the upsampled LQ, its gradient energy beside the target's, and its noise level (Immerkaer 1996)."""
    height, width = target.shape[:2]
    up = cv2.resize(lq, (width, height), interpolation=cv2.INTER_CUBIC).astype(np.float64)
    target = target.astype(np.float64)

    def energy(image):
        return sum(np.mean(np.diff(image, axis=axis) ** 2) for axis in (0, 1))

    response = cv2.filter2D(lq.astype(np.float64), -1, np.array([[1.0, -2, 1], [-2, 4, -2], [1, -2, 1]]))
    noise = np.abs(response[1:-1, 1:-1]).mean() * np.sqrt(np.pi / 2) / 6
    psnr = 10 * np.log10(255**2 / max(1e-3, np.mean((up - target) ** 2)))
    return psnr, np.log(max(1e-6, energy(up)) / max(1e-6, energy(target))), np.log(noise + 1e-3)


def of_literal(images, preset):
    return np.array([measures(*literal.degrade(image, preset, seed)) for seed, image in enumerate(images)])


def of_worker(images, preset, first_seed=0):
    """Three draws of every crop."""
    pairs = (degrade(images[n % len(images)], preset, first_seed + n) for n in range(3 * len(images)))
    return np.array([measures(*pair) for pair in pairs])


def of_device(images, preset):
    batch = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).float() / 255
    pairs = degrade_batch(batch, preset, range(1000, 1000 + len(images)))
    arrays = [(pair * 255).round().byte().permute(0, 2, 3, 1).numpy() for pair in pairs]
    return np.array([measures(*pair) for pair in zip(*arrays, strict=True)])


def smallest_p(a, b):
    return min(stats.ks_2samp(a[:, k], b[:, k]).pvalue for k in range(a.shape[1]))


@pytest.mark.parametrize("name", DISTINCT)
def test_both_engines_have_the_literal_distributions(name, images):
    """Independent draws on the same crops; by chance one of the 36 comparisons fails in 1 of 280 seeds."""
    preset = load_preset(name)
    expected = of_literal(images, preset)
    worker, device = of_worker(images, preset), of_device(images, preset)
    assert min(smallest_p(worker, expected), smallest_p(device, expected), smallest_p(worker, device)) > 1e-4


def test_the_distributions_tell_settings_apart(images):
    """The test above would fail with another preset, or with a third of the noise."""
    preset = load_preset("dit4sr")
    expected = of_worker(images, preset)
    assert smallest_p(of_worker(images, preset, first_seed=5000), expected) > 1e-4
    less_noise = {"noise_range": (1, 10), "noise_range2": (1, 8), "poisson_scale_range": (0.05, 1)}
    less_noise["poisson_scale_range2"] = (0.05, 0.8)
    for changes in (dataclasses.asdict(load_preset("light")), less_noise):
        other = dataclasses.replace(preset, **changes)
        assert smallest_p(of_worker(images, other, first_seed=5000), expected) < 1e-4


@pytest.mark.skipif(not SHARED.is_dir(), reason="an extra, where these photos are")
def test_the_distributions_on_other_photos():
    files = sorted(path for path in SHARED.rglob("*") if path.suffix in (".jpg", ".png"))[:60]
    images = list(crops([read_image(path) for path in files], 60, SIDE))
    preset = load_preset("dit4sr")
    expected = of_literal(images, preset)
    assert min(smallest_p(of_worker(images, preset), expected), smallest_p(of_device(images, preset), expected)) > 1e-4

"""Each stage of the worker's degradation against its definition, computed slowly and literally."""

import math

import cv2
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.special import jv
from skimage import data

from dit4sr.data.degradations import degrade, draw_parameters, worker
from dit4sr.data.degradations.kernels import make_kernel, pad_kernel
from dit4sr.data.degradations.parameters import KernelParameters, NoiseParameters, ResizeParameters
from dit4sr.errors import UserError


@pytest.fixture(scope="module")
def photo():
    return data.astronaut()


def reflect(i, n):
    if n == 1:
        return 0
    while not 0 <= i < n:
        i = -i if i < 0 else 2 * (n - 1) - i
    return i


def slow_filter(image, kernel):
    """Correlation with a reflected border, one tap at a time, in double precision."""
    height, width = image.shape[:2]
    ry, rx = kernel.shape[0] // 2, kernel.shape[1] // 2
    rows = [reflect(i, height) for i in range(-ry, height + ry)]
    columns = [reflect(i, width) for i in range(-rx, width + rx)]
    padded = image.astype(np.float64)[rows][:, columns]
    result = np.zeros(image.shape)
    for dy in range(kernel.shape[0]):
        for dx in range(kernel.shape[1]):
            result += kernel[dy, dx] * padded[dy : dy + height, dx : dx + width]
    return result


KERNELS = [
    KernelParameters("iso", 7, 0.4, 0.4),
    KernelParameters("aniso", 21, 3.0, 0.7, 0.5),
    KernelParameters("generalized_iso", 9, 1.5, 1.5, beta=0.6),
    KernelParameters("generalized_aniso", 13, 2.0, 0.6, -2.0, 3.5),
    KernelParameters("plateau_iso", 11, 2.0, 2.0, beta=1.7),
    KernelParameters("plateau_aniso", 15, 0.5, 2.5, 1.1, 1.2),
]


@pytest.mark.parametrize("p", KERNELS, ids=lambda p: p.family)
def test_kernel_is_its_formula(p):
    c, s = math.cos(p.rotation), math.sin(p.rotation)
    rotation = np.array([[c, -s], [s, c]])
    inverse = np.linalg.inv(rotation @ np.diag([p.sigma_x**2, p.sigma_y**2]) @ rotation.T)
    expected = np.empty((p.size, p.size))
    for row in range(p.size):
        for column in range(p.size):
            x = np.array([column - p.size // 2, row - p.size // 2])
            q = x @ inverse @ x
            if "plateau" in p.family:
                expected[row, column] = 1 / (1 + q**p.beta)
            else:
                expected[row, column] = math.exp(-0.5 * q ** (p.beta if "generalized" in p.family else 1))
    kernel = make_kernel(p)
    np.testing.assert_allclose(kernel, expected / expected.sum(), atol=1e-7)
    assert kernel.sum() == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize(("size", "cutoff"), [(7, math.pi / 3), (13, 1.0), (21, math.pi)])
def test_sinc_is_its_formula(size, cutoff):
    expected = np.empty((size, size))
    for row in range(size):
        for column in range(size):
            r = math.hypot(row - size // 2, column - size // 2)
            expected[row, column] = cutoff * jv(1, cutoff * r) / (2 * math.pi * r) if r else cutoff**2 / (4 * math.pi)
    kernel = make_kernel(KernelParameters("sinc", size, cutoff=cutoff))
    np.testing.assert_allclose(kernel, expected / expected.sum(), atol=1e-7)
    assert kernel.min() < 0  # it rings


def test_a_padded_kernel_is_21_wide_and_centred():
    kernel = make_kernel(KERNELS[0])
    padded = pad_kernel(kernel)
    assert padded.shape == (21, 21) and padded.sum() == pytest.approx(kernel.sum())
    assert np.unravel_index(padded.argmax(), padded.shape) == (10, 10)


@pytest.mark.parametrize("size", [(1, 1), (1, 6), (3, 7), (9, 30), (40, 25)])
@pytest.mark.parametrize("p", [KERNELS[1], KERNELS[5], KernelParameters("sinc", 7, cutoff=2.0)], ids=str)
def test_filtering_reflects_even_images_smaller_than_the_kernel(size, p):
    image = np.random.default_rng(0).random((*size, 3), dtype=np.float32)
    np.testing.assert_allclose(worker.blur(image, p), slow_filter(image, make_kernel(p)), atol=2e-6)


@pytest.mark.parametrize("size", [(48, 52), (20, 31)])
def test_sharpening_is_its_formula(photo, size):
    image = photo[100 : 100 + size[0], 200 : 200 + size[1]].astype(np.float32) / 255
    x = np.arange(51) - 25
    taps = np.exp(-0.5 * (x / 8.0) ** 2)  # OpenCV's sigma of 51 taps: 0.3 * ((51 - 1) / 2 - 1) + 0.8
    kernel = np.outer(taps, taps) / taps.sum() ** 2
    residual = image - slow_filter(image, kernel)
    mask = slow_filter((np.abs(residual) * 255 > 10).astype(np.float64), kernel)
    sharp = np.clip(image + 0.5 * residual, 0, 1)
    expected = mask * sharp + (1 - mask) * image
    assert np.abs(expected - image).max() > 0.05
    np.testing.assert_allclose(worker.sharpen(image), expected, atol=1e-5)


@pytest.mark.parametrize("mode", ["area", "bilinear", "bicubic"])
def test_resize_is_torchs(mode):
    rng = np.random.default_rng(0)
    for _ in range(40):
        source, (height, width) = rng.integers(1, 100, 2), rng.integers(1, 100, 2)
        image = rng.random((*source, 3), dtype=np.float32)
        tensor = torch.from_numpy(image).permute(2, 0, 1)[None]
        corners = {} if mode == "area" else {"align_corners": False}
        expected = F.interpolate(tensor, size=(int(height), int(width)), mode=mode, **corners)
        result = worker.resize(image, ResizeParameters(mode, int(height), int(width)))
        np.testing.assert_allclose(result, expected[0].permute(1, 2, 0).numpy(), atol=3e-5)


@pytest.mark.parametrize("gray", [False, True])
def test_gaussian_noise(gray):
    image = np.full((200, 200, 3), 0.5, np.float32)
    p = NoiseParameters("gaussian", gray, 20 / 255)
    noise = worker.add_noise(image, p, np.random.default_rng(1)) - image
    assert noise.std() * 255 == pytest.approx(20, rel=0.02) and abs(noise.mean()) * 255 < 0.3
    correlation = np.corrcoef(noise.reshape(-1, 3).T)[0, 1]
    assert correlation == pytest.approx(1 if gray else 0, abs=0.02)
    assert len(np.unique(noise)) > 30000  # not rounded to 8 bits


def test_noise_is_clipped():
    image = np.tile(np.array([0.0, 1.0], np.float32)[:, None, None], (50, 100, 3))
    for kind, strength in (("gaussian", 0.2), ("poisson", 3.0)):
        noisy = worker.add_noise(image, NoiseParameters(kind, False, strength), np.random.default_rng(0))
        assert noisy.min() == 0 and noisy.max() == 1


@pytest.mark.parametrize(("levels", "vals"), [(1, 1), (2, 2), (3, 4), (64, 64), (65, 128), (256, 256)])
def test_poisson_levels_are_the_next_power_of_two(levels, vals):
    image = np.resize(np.arange(levels, dtype=np.uint8), (30, 40, 3))
    assert worker.poisson_levels(image) == vals


@pytest.mark.parametrize("gray", [False, True])
def test_poisson_noise(gray):
    # Five levels in the whole image, so v = 8; at a pixel of value x the variance is strength^2 * x / v.
    columns = np.array([60, 90, 120, 150, 180], np.uint8).repeat(60)
    image = (np.tile(columns[None, :, None], (400, 1, 3)) / 255).astype(np.float32)
    strength = 0.3
    noisy = worker.add_noise(image, NoiseParameters("poisson", gray, strength), np.random.default_rng(2))
    noise = noisy - image
    for k, level in enumerate((60, 90, 120)):
        part = noise[:, 60 * k : 60 * (k + 1)]
        assert part.std() == pytest.approx(strength * math.sqrt(level / 255 / 8), rel=0.03)
        assert abs(part.mean()) < 0.003
    correlation = np.corrcoef(noise[:, :60].reshape(-1, 3).T)[0, 1]
    assert correlation == pytest.approx(1 if gray else 0, abs=0.03)


def test_gray_poisson_counts_the_levels_of_the_luma():
    # 16 reds, no green or blue: in colour there are 16 levels; the luma 0.299 * R has the 5 levels 0..4.
    image = np.zeros((64, 64, 3), np.float32)
    image[..., 0] = np.resize(np.arange(16), (64, 64)) / 255
    noise = worker.add_noise(image, NoiseParameters("poisson", True, 1.0), np.random.default_rng(0)) - image
    steps = noise[..., 1][noise[..., 1] > 0]
    # Noise = k/8 - luma with luma <= 4/255: every positive value lies just under a multiple of 1/8.
    below = np.ceil(steps * 8) / 8 - steps
    assert len(steps) > 50 and below.max() < 4.6 / 255


def mean_error(image, quality):
    return np.abs(worker.jpeg_uint8(image, quality).astype(float) - image).mean()


def test_jpeg_improves_with_quality_and_keeps_rgb_order(photo):
    errors = [mean_error(photo, quality) for quality in (10, 30, 60, 90, 100)]
    assert errors == sorted(errors, reverse=True) and errors[-1] < 1.5 < errors[0]
    red = np.zeros((32, 32, 3), np.uint8)
    red[..., 0] = 200
    assert np.abs(worker.jpeg_uint8(red, 95).astype(int) - red).max() <= 3


def test_jpeg_halves_the_chroma():
    """At quality 100, columns that alternate in luma survive; columns that alternate in chroma do not."""
    luma = np.zeros((32, 32, 3), np.uint8)
    luma[:, ::2] = 128
    assert mean_error(luma, 100) < 2
    chroma = np.full((32, 32, 3), 128, np.uint8)
    chroma[:, ::2, 2] = 228  # blue weighs 0.114 in the luma: almost all of the change is chroma
    decoded = worker.jpeg_uint8(chroma, 100).astype(float)
    assert np.abs(decoded[:, ::2, 2] - decoded[:, 1::2, 2]).mean() < 25


def test_result_is_what_the_stages_give_in_order(photo):
    """The whole pipeline, put together here from the stages in the published order, for both last orders."""
    seen = set()
    for seed in range(12):
        hq = np.ascontiguousarray(photo[64:144, 32:128])
        p = draw_parameters("dit4sr", seed, 80, 96)
        rng = worker.worker_noise(seed)
        x = worker.sharpen(hq.astype(np.float32) / 255)
        target = np.rint(x * 255)
        x = worker.resize(worker.blur(x, p.blur1), p.resize1)
        x = worker.jpeg(worker.add_noise(x, p.noise1, rng), p.jpeg1)
        x = x if p.blur2 is None else worker.blur(x, p.blur2)
        x = worker.add_noise(worker.resize(x, p.resize2), p.noise2, rng)
        x = x if p.jpeg_last else worker.jpeg(x, p.jpeg2)
        x = worker.resize(x, p.resize3)
        x = x if p.sinc is None else worker.blur(x, p.sinc)
        x = worker.jpeg(x, p.jpeg2) if p.jpeg_last else x
        result_hq, result_lq = degrade(hq, "dit4sr", seed)
        np.testing.assert_allclose(result_hq, target, atol=1)
        np.testing.assert_array_equal(result_lq, worker.to_uint8(x))
        seen.add((p.jpeg_last, p.blur2 is None, p.sinc is None))
    assert len(seen) >= 4


@pytest.mark.parametrize("size", [(4, 4), (8, 100), (48, 48), (64, 48), (132, 68)])
def test_sizes(photo, size):
    hq = np.ascontiguousarray(photo[: size[0], : size[1]])
    for seed in range(25):
        target, lq = degrade(hq, "realesrgan", seed)
        assert target.shape == hq.shape and lq.shape == (size[0] // 4, size[1] // 4, 3)
        assert target.dtype == lq.dtype == np.uint8


def test_the_seed_decides(photo):
    hq = np.ascontiguousarray(photo[:64, :64])
    first, again, other = degrade(hq, "light", 3)[1], degrade(hq, "light", 3)[1], degrade(hq, "light", 4)[1]
    np.testing.assert_array_equal(first, again)
    assert np.abs(first.astype(int) - other).mean() > 0.5


def test_target_is_sharpened_only_where_the_preset_says_so(photo):
    hq = np.ascontiguousarray(photo[:128, 100:228])
    before = hq.copy()
    for name in ("osediff", "light"):
        target, _ = degrade(hq, name, 0)
        np.testing.assert_array_equal(target, hq)
        assert not np.shares_memory(target, hq)
    energy = np.mean(np.diff(hq.astype(float), axis=1) ** 2)
    for name in ("realesrgan", "seesr", "dit4sr", "stablesr"):
        target, _ = degrade(hq, name, 0)
        assert np.mean(np.diff(target.astype(float), axis=1) ** 2) > 1.1 * energy
    np.testing.assert_array_equal(hq, before)


def test_presets_differ_in_strength(photo):
    hq = np.ascontiguousarray(photo[:128, 100:228])

    def psnr(name, seed):
        target, lq = degrade(hq, name, seed)
        up = cv2.resize(lq, (128, 128), interpolation=cv2.INTER_CUBIC)
        return cv2.PSNR(up, target)

    medians = {name: np.median([psnr(name, s) for s in range(60)]) for name in ("osediff", "light")}
    assert medians["light"] > medians["osediff"] + 0.5


@pytest.mark.parametrize(
    "bad",
    [
        np.zeros((63, 64, 3), np.uint8),
        np.zeros((64, 66, 3), np.uint8),
        np.zeros((0, 64, 3), np.uint8),
        np.zeros((64, 64), np.uint8),
        np.zeros((64, 64, 4), np.uint8),
        np.zeros((64, 64, 3), np.float32),
        [[1, 2, 3]],
    ],
)
def test_bad_images_are_refused(bad):
    with pytest.raises(UserError):
        degrade(bad, "dit4sr", 0)

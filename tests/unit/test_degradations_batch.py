"""The batched engine: its stages against the worker's, and the two engines against each other."""

import dataclasses

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from skimage import data

from dit4sr.data.degradations import degrade, degrade_batch, device, load_preset, worker
from dit4sr.data.degradations.batched_jpeg import CHROMA_TABLE, LUMA_TABLE, jpeg_batch, quantisation_tables
from dit4sr.data.degradations.device import Ragged
from dit4sr.data.degradations.parameters import KernelParameters, NoiseParameters, ResizeParameters
from dit4sr.errors import UserError

DEVICES = ["cpu"] + ["cuda"] * torch.cuda.is_available()


def crops(n, height, width):
    photos = (data.astronaut(), data.coffee(), data.chelsea())
    rng = np.random.default_rng(7)
    for i in range(n):
        photo = photos[i % len(photos)]
        top = rng.integers(0, photo.shape[0] - height + 1)
        left = rng.integers(0, photo.shape[1] - width + 1)
        yield np.ascontiguousarray(photo[top : top + height, left : left + width])


def to_batch(images):
    return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).float() / 255


def to_array(image_chw):
    return image_chw.permute(1, 2, 0).cpu().numpy()


@pytest.fixture
def ragged():
    """Four images of different sizes on a canvas whose other pixels are garbage that no stage may read."""
    sizes = [(40, 33), (7, 9), (1, 50), (26, 26)]
    generator = torch.Generator().manual_seed(0)
    pixels = torch.full((4, 3, 40, 50), 1e6)
    for b, (h, w) in enumerate(sizes):
        pixels[b, :, :h, :w] = torch.rand(3, h, w, generator=generator)
    return Ragged.of(pixels, sizes)


def each(x):
    for b, (h, w) in enumerate(x.sizes):
        yield to_array(x.pixels[b, :, :h, :w])


def test_blur_is_the_workers(ragged):
    kernels = [KernelParameters("aniso", 21, 3, 1, 0.3), KernelParameters("sinc", 13, cutoff=1.5)]
    kernels += [None, KernelParameters("plateau_iso", 7, 1, 1, beta=1.5)]
    for image, result, p in zip(each(ragged), each(device.blur(ragged, kernels)), kernels, strict=True):
        np.testing.assert_allclose(result, image if p is None else worker.blur(image, p), atol=5e-6)


@pytest.mark.parametrize("mode", ["area", "bilinear", "bicubic"])
def test_resize_is_torchs(ragged, mode):
    targets = [(61, 12), (7, 9), (3, 17), (5, 90)]
    result = device.resize(ragged, [ResizeParameters(mode, *size) for size in targets])
    for image, resized, size in zip(each(ragged), each(result), targets, strict=True):
        corners = {} if mode == "area" else {"align_corners": False}
        tensor = torch.from_numpy(image).permute(2, 0, 1)[None]
        expected = F.interpolate(tensor, size=size, mode=mode, **corners)[0]
        np.testing.assert_allclose(resized, to_array(expected), atol=3e-5)


def test_noise_is_the_workers_in_law():
    columns = np.array([60, 90, 120, 150], np.uint8).repeat(50)
    image = np.tile(columns[None, :, None], (200, 1, 3))
    for p in (
        NoiseParameters("gaussian", True, 0.08),
        NoiseParameters("gaussian", False, 0.04),
        NoiseParameters("poisson", True, 0.3),
        NoiseParameters("poisson", False, 0.2),
    ):
        x = Ragged.of(to_batch([image]), [image.shape[:2]])
        result = to_array(device.add_noise(x, [p], [torch.Generator().manual_seed(1)]).pixels[0])
        expected = worker.add_noise((image / 255).astype(np.float32), p, np.random.default_rng(1))
        for k in range(4):
            part, other = (r[:, 50 * k : 50 * k + 50] - image[0, 50 * k, 0] / 255 for r in (result, expected))
            # 10000 samples (a third as many where gray): four standard errors of the ratio are below 4 %.
            assert part.std() == pytest.approx(other.std(), rel=0.04)
            assert abs(part.mean() - other.mean()) < 0.006
            correlations = [np.corrcoef(r.reshape(-1, 3).T)[0, 1] for r in (part, other)]
            assert correlations[0] == pytest.approx(correlations[1], abs=0.05)


def test_jpeg_is_a_real_codecs(ragged):
    images = list(crops(6, 61, 90))
    qualities = [30, 45, 60, 75, 95, 100]
    sizes = [(61, 90), (48, 64), (33, 17), (61, 7), (20, 90), (8, 8)]
    batch = to_batch(images)
    for b, (h, w) in enumerate(sizes):
        batch[b, :, h:], batch[b, :, :, w:] = 1, 0  # must not be read
    x = Ragged.of(batch, sizes)
    result = jpeg_batch(x.pixels, x.heights, x.widths, qualities)
    for b, (h, w) in enumerate(sizes):
        coded = to_array(result[b, :, :h, :w]) * 255
        expected = worker.jpeg_uint8(np.ascontiguousarray(images[b][:h, :w]), qualities[b]).astype(float)
        # A coefficient at a rounding boundary may fall on the other side; most pixels agree exactly.
        assert np.abs(coded - expected).mean() < 1.0
        loss = np.abs(expected - images[b][:h, :w]).mean()
        assert np.abs(coded - expected).mean() < 0.5 * loss


@pytest.mark.parametrize("size", [(12, 16), (24, 8), (8, 8), (11, 13)])
def test_jpeg_pads_the_chroma_as_a_real_codec(size):
    """Where a side is no multiple of 16, the padding shares blocks with the image, so its rule shows."""
    errors = []
    for image in crops(24, 96, 96):
        small = worker.resize(image.astype(np.float32) / 255, ResizeParameters("area", *size))
        small = worker.to_uint8(small)
        x = Ragged.of(to_batch([small]), [size])
        coded = to_array(jpeg_batch(x.pixels, x.heights, x.widths, [40])[0]) * 255
        errors.append(np.abs(coded - worker.jpeg_uint8(small, 40)).mean())
    assert np.mean(errors) < 0.7  # roundings alone give 0.3; padding by another rule gives 1.2 to 2


def test_quantisation_tables_scale_as_libjpegs():
    tables = quantisation_tables([50, 100, 25, 1, 90], LUMA_TABLE)
    base = torch.tensor(LUMA_TABLE).float()
    assert torch.equal(tables[0], base) and torch.equal(tables[1], torch.ones(8, 8))
    assert torch.equal(tables[2], 2 * base) and tables[3].max() == 255 and tables[4, 0, 0] == 3
    assert quantisation_tables([50], CHROMA_TABLE)[0, 7, 7] == 99


@pytest.mark.parametrize("where", DEVICES)
def test_without_noise_the_engines_agree_pixel_by_pixel(where):
    """The same seed draws the same kernels, sizes, modes, qualities and orders in both engines."""
    zero = {f"{kind}_range{k}": (0.0, 0.0) for kind in ("noise", "poisson_scale") for k in ("", "2")}
    preset = dataclasses.replace(load_preset("dit4sr"), **zero)
    images = list(crops(24, 96, 64))
    targets, lqs = degrade_batch(to_batch(images).to(where), preset, range(24))
    errors = []
    for seed, image in enumerate(images):
        target, lq = degrade(image, preset, seed)
        assert np.abs(to_array(targets[seed]) * 255 - target).max() <= 1.01
        errors.append(np.abs(to_array(lqs[seed]) * 255 - lq).mean())
    # What is left is the codecs' rounding, twice; one wrong mode or kernel costs several levels on average.
    assert np.median(errors) < 1.2 and max(errors) < 4


def gradient_energy(image):
    return np.mean(np.diff(image, axis=0) ** 2) + np.mean(np.diff(image, axis=1) ** 2)


def noise_level(image):
    """Immerkaer's estimate of white noise (1996): the mean |response| to a filter blind to smooth content."""
    kernel = torch.tensor([[1.0, -2, 1], [-2, 4, -2], [1, -2, 1]])
    response = F.conv2d(torch.from_numpy(image).permute(2, 0, 1)[:, None], kernel[None, None])
    return float(response.abs().mean() * np.sqrt(np.pi / 2) / 6)


@pytest.mark.parametrize("where", DEVICES)
@pytest.mark.parametrize("name", ["realesrgan", "stablesr"])
def test_the_engines_agree_in_distribution(name, where):
    """Images are paired by parameters, so only the noise's values and the codecs' roundings differ."""
    n, size = 96, 64
    images = list(crops(n, size, size))
    targets, lqs = degrade_batch(to_batch(images).to(where), name, range(n))
    upscaled = F.interpolate(lqs, size=(size, size), mode="bicubic", align_corners=False)
    ratios = []
    for seed, image in enumerate(images):
        target, lq = degrade(image, name, seed)
        lq = lq.astype(np.float32) / 255
        up = worker.resize(lq, ResizeParameters("bicubic", size, size))
        batched = (to_array(upscaled[seed]), to_array(targets[seed]), to_array(lqs[seed]))
        pairs = ((up, target / 255, lq), batched)
        values = [(np.mean((u - t) ** 2), gradient_energy(x), noise_level(x)) for u, t, x in pairs]
        ratios.append(np.divide(values[1], values[0]))
    # The noise makes one pair's ratio scatter by up to 15 %, so a median of 96 pairs by 2 %:
    # this is four of those (0.3 dB of PSNR).
    assert np.median(ratios, axis=0) == pytest.approx([1, 1, 1], abs=0.08)


@pytest.mark.parametrize("where", DEVICES)
def test_an_image_depends_on_its_own_seed_alone(where):
    batch = to_batch(list(crops(4, 48, 64))).to(where)
    hq, lq = degrade_batch(batch, "realesrgan", [9, 5, 9, 7])
    assert lq.shape == (4, 3, 12, 16) and hq.shape == batch.shape and lq.device == batch.device
    alone = degrade_batch(batch[1:2], "realesrgan", torch.tensor([5]))[1]
    # A convolution of another batch size may round differently, and so may one coefficient of a JPEG.
    assert (alone[0] - lq[1]).abs().mean() * 255 < 0.5
    assert torch.equal(degrade_batch(batch, "realesrgan", [9, 5, 9, 7])[1], lq)
    assert not torch.equal(degrade_batch(batch, "realesrgan", [1, 2, 3, 4])[1], lq)


def test_results_are_eight_bit_levels_and_bounded():
    for image in degrade_batch(to_batch(list(crops(5, 48, 48))), "dit4sr", range(5)):
        assert image.min() >= 0 and image.max() <= 1
        assert (image * 255 - torch.round(image * 255)).abs().max() < 1e-4


def test_autocast_does_not_reach_the_filters():
    batch = to_batch(list(crops(3, 48, 48)))
    plain = degrade_batch(batch, "light", range(3))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cast = degrade_batch(batch, "light", range(3))
    assert torch.equal(plain[0], cast[0]) and torch.equal(plain[1], cast[1])


@pytest.mark.parametrize("shape", [(4, 4), (8, 60)])
def test_small_sizes(shape):
    batch = to_batch(list(crops(8, *shape)))
    hq, lq = degrade_batch(batch, "realesrgan", range(8))
    assert hq.shape == batch.shape and lq.shape == (8, 3, shape[0] // 4, shape[1] // 4)
    assert torch.isfinite(lq).all()


@pytest.mark.parametrize(
    ("bad", "seeds"),
    [
        (torch.zeros(1, 3, 62, 64), [0]),
        (torch.zeros(1, 4, 64, 64), [0]),
        (torch.zeros(3, 64, 64), [0]),
        (torch.zeros(1, 3, 64, 64, dtype=torch.uint8), [0]),
        (torch.zeros(2, 3, 64, 64), [0]),
        (torch.zeros(1, 3, 64, 64), [-1]),
    ],
)
def test_bad_batches_are_refused(bad, seeds):
    with pytest.raises(UserError):
        degrade_batch(bad, "dit4sr", seeds)

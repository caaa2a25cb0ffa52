"""The batched engine's codecs: which one is used, and gradients through them."""

import sys

import numpy as np
import pytest
import torch
from skimage import data

from dit4sr.data.degradations import degrade_batch
from dit4sr.data.degradations.codecs import CODECS, find_codec
from dit4sr.data.degradations.rounding import rounded, to_levels
from dit4sr.data.sources import check_sources
from dit4sr.errors import UserError

CODEC_NAMES = ("libjpeg", "kornia")


def need(codec):
    if codec == "kornia":
        pytest.importorskip("kornia")


def photos(n, height, width):
    """(n, 3, height, width) in [0, 1]: parts of a photo, in levels."""
    photo = data.astronaut()
    starts = np.linspace(0, 512 - max(height, width), n, dtype=int)
    crops = [photo[s : s + height, s : s + width] for s in starts]
    return torch.from_numpy(np.stack(crops)).permute(0, 3, 1, 2).float() / 255


def whole(batch):
    """Heights and widths of a batch whose images fill the canvas."""
    return [torch.full((len(batch),), side) for side in batch.shape[2:]]


def test_without_kornia_one_line_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "kornia", None)  # as where it is not installed
    with pytest.raises(UserError, match=r"pip install 'dit4sr\[kornia\]'"):
        degrade_batch(photos(1, 16, 16), "dit4sr", [0], jpeg="kornia")
    for setting, message in (
        ({"jpeg": "kornia", "engine": "device"}, "needs kornia"),
        ({"jpeg": "turbo"}, "choose one of libjpeg, kornia"),
    ):
        with pytest.raises(UserError, match=message):
            check_sources({"name": "embedded", **setting})
    assert find_codec("libjpeg") is CODECS["libjpeg"]


def test_a_codec_that_nothing_would_use_is_refused():
    need("kornia")
    check_sources({"name": "embedded", "jpeg": "kornia", "engine": "device"})
    with pytest.raises(UserError, match="data.jpeg=kornia is of data.engine=device"):
        check_sources({"name": "embedded", "jpeg": "kornia", "engine": "worker"})


@pytest.mark.parametrize("name", CODEC_NAMES)
def test_each_image_has_its_own_quality_and_size(name):
    need(name)
    codec, qualities, sizes = find_codec(name), [30, 60, 90, 30], [(48, 64), (48, 64), (48, 64), (37, 21)]
    batch = photos(1, 48, 64).repeat(4, 1, 1, 1)
    batch[3, :, 37:], batch[3, :, :, 21:] = 7, -7  # must not be read
    heights, widths = torch.tensor(sizes).unbind(1)
    coded = codec(batch, heights, widths, qualities)
    errors = []
    for b, (height, width) in enumerate(sizes):
        image, result = batch[b : b + 1, :, :height, :width], coded[b : b + 1, :, :height, :width]
        assert torch.equal(result, to_levels(result)) and result.min() >= 0 and result.max() <= 1
        alone = codec(image, *whole(image), qualities[b : b + 1])
        # Only the border's chroma may notice what an image is padded with.
        assert (alone - result).abs().mean() * 255 < 0.1
        errors.append(float((result - image).square().mean()))
    assert errors[0] > 1.3 * errors[1] > 1.3 * 1.3 * errors[2] > 0


def test_kornias_artefacts_are_weaker_than_libjpegs():
    """Why it is not the default: docs/degradations.md."""
    need("kornia")
    batch = photos(4, 128, 128)
    loss = {name: (find_codec(name)(batch, *whole(batch), [30] * 4) - batch).square().mean() for name in CODEC_NAMES}
    assert 0.7 < loss["kornia"] / loss["libjpeg"] < 0.95


def test_rounding_passes_gradients_and_nothing_else():
    x = torch.tensor([-1.5, 0.2, 0.5, 2.5, 2.6], requires_grad=True)
    result = rounded(x)
    assert torch.equal(result, torch.round(x.detach()))
    (result * torch.arange(5.0)).sum().backward()
    assert torch.equal(x.grad, torch.arange(5.0))
    assert not rounded(x.detach()).requires_grad


@pytest.mark.parametrize("name", CODEC_NAMES)
def test_gradients_flow_from_lq_to_hq(name):
    need(name)
    seeds = range(6)
    batch = (0.2 + 0.6 * photos(len(seeds), 64, 64)).requires_grad_()
    hq, lq = degrade_batch(batch, "light", seeds, jpeg=name)
    plain = degrade_batch(batch.detach(), "light", seeds, jpeg=name)
    assert torch.equal(hq, plain[0]) and torch.equal(lq, plain[1])  # asking for gradients changes nothing
    assert lq.requires_grad and not plain[1].requires_grad
    (gradient,) = torch.autograd.grad(lq.flatten(1).mean(1).sum(), batch)
    assert torch.isfinite(gradient).all() and (gradient.flatten(1).abs().amax(1) > 0).all()
    if name == "libjpeg":
        # Every stage keeps a constant, so a brighter photo is as much brighter an LQ, but where it is clipped.
        assert float(gradient.flatten(1).sum(1).median()) == pytest.approx(1, abs=0.02)

"""Restoring: any size, each image its own noise, colours aligned."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from tiny_checkpoint import picture

from dit4sr.autoencoders import BlockDCT
from dit4sr.errors import UserError
from dit4sr.images import from_hwc, to_hwc, upsample_bicubic
from dit4sr.prompts import HashingTextEncoder
from dit4sr.restoration.colour import align_adain, align_wavelet
from dit4sr.restoration.restorer import Restorer, TileSettings
from dit4sr.restoration.sampler_settings import SamplerSettings
from dit4sr.restoration.upsampling import Upsampled, reflected

SAMPLER: dict[str, Any] = {
    "steps": 3,
    "shift": 3.0,
    "guidance": 2.0,
    "start": "noise",
    "first_sigma": 1.0,
    "negative_prompt": "bad",
    "positive_suffix": "good",
    "tile_batch": 4,
    "colour": "none",
}


class TowardsLR:
    """A network whose posterior is a point at the LR latent: any number of steps must land on it."""

    def __init__(self) -> None:
        self.sizes: set[tuple[int, int]] = set()
        self.batches: list[int] = []

    def __call__(self, z: Any, lr: Any, timestep: Any, tokens: Any, pooled: Any, return_dict: bool = False) -> Any:
        self.sizes.add(tuple(z.shape[-2:]))
        self.batches.append(len(z))
        sigma = (timestep / 1000).reshape(-1, 1, 1, 1)
        return (z - lr) / sigma


class Noise(TowardsLR):
    """A network that leaves the noise as it is."""

    def __call__(self, z: Any, *arguments: Any, return_dict: bool = False) -> Any:
        return torch.zeros_like(z)


def restorer(network: Any, **sampler: Any) -> Restorer:
    return Restorer(
        network=network,
        autoencoder=BlockDCT(),
        text_encoder=HashingTextEncoder(4, 8, 8),
        sampler=SamplerSettings.from_config({**SAMPLER, **sampler}),
        tile=TileSettings(8, 2),
        device=torch.device("cpu"),
    )


@pytest.mark.parametrize(
    ("height", "width", "upscale"), [(16, 16, 4), (17, 31, 4), (5, 40, 4), (24, 20, 2.5), (33, 18, 1)]
)
def test_any_size_comes_back_exactly(height: int, width: int, upscale: float) -> None:
    """Towards the LR latent, the result is what the autoencoder keeps of the upsampled input."""
    network = TowardsLR()
    lq = picture(height, width, 0)
    restored = restorer(network).restore(lq, "a photo", seed=3, upscale=upscale)
    size = (round(height * upscale), round(width * upscale))
    assert restored.shape == (*size, 3) and restored.dtype == np.uint8
    assert network.sizes == {(8, 8)}  # only tiles of the size that it was trained on
    assert max(network.batches) <= 2 * 4
    padded = [max(32, -(-side // 8) * 8) for side in size]  # whole tokens, and a tile of 8 latent pixels at least
    rows, columns = (reflected(torch.arange(p), s) for p, s in zip(padded, size, strict=True))
    upsampled = upsample_bicubic(from_hwc(lq), *size)[..., rows, :][..., columns]
    kept = BlockDCT().decode(BlockDCT().encode(upsampled))[..., : size[0], : size[1]]
    assert np.abs(restored.astype(int) - to_hwc(kept)).max() <= 1


def test_padding_reflects_as_often_as_it_takes() -> None:
    assert reflected(torch.arange(9), 3).tolist() == [0, 1, 2, 1, 0, 1, 2, 1, 0]
    assert reflected(torch.arange(4), 1).tolist() == [0, 0, 0, 0]


@pytest.mark.parametrize(
    ("source", "size"),
    [((16, 16), (64, 64)), ((33, 18), (33, 18)), ((24, 20), (60, 50)), ((1, 5), (4, 20)), ((30, 23), (100, 67))],
)
def test_parts_of_the_upsampled_image_are_torchs(source: tuple[int, int], size: tuple[int, int]) -> None:
    lq = torch.randint(0, 256, (2, 3, *source), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    expected = upsample_bicubic(lq / 255, *size)
    upsampled = Upsampled(lq, *size)
    torch.testing.assert_close(upsampled.rows(0, size[0]), expected, rtol=0, atol=1e-5)
    rows, columns = slice(size[0] // 3, size[0] + 2), slice(size[1] // 2, size[1] + 3)
    continued = expected[..., reflected(torch.arange(size[0] + 2), size[0]), :]
    continued = continued[..., reflected(torch.arange(size[1] + 3), size[1])]
    torch.testing.assert_close(upsampled.part(rows, columns), continued[..., rows, columns], rtol=0, atol=1e-5)


def test_noise_follows_from_the_images_own_seed() -> None:
    lqs = [picture(8, 12, n) for n in range(3)]
    restore = restorer(Noise()).restore_batch
    together = restore(lqs, [""] * 3, [5, 6, 7])
    alone = [restore([lq], [""], [seed])[0] for lq, seed in zip(lqs, (5, 6, 7), strict=True)]
    for a, b in zip(together, alone, strict=True):
        np.testing.assert_array_equal(a, b)
    assert not np.array_equal(restore(lqs[:1], [""], [5])[0], restore(lqs[:1], [""], [6])[0])


def test_float_results_are_the_unrounded_ones() -> None:
    lq = picture(8, 8, 1)
    (exact,) = restorer(TowardsLR()).restore_batch([lq], [""], [0], as_float=True)
    assert exact.dtype == np.float32 and exact.min() >= 0 and exact.max() <= 1
    np.testing.assert_array_equal(np.rint(exact * 255).astype(np.uint8), restorer(TowardsLR()).restore(lq, "", seed=0))


def test_adain_gives_the_references_mean_and_deviation() -> None:
    restored, reference = torch.rand(2, 3, 16, 16), torch.rand(2, 3, 16, 16) * 0.3 + 0.2
    aligned = align_adain(restored, reference)
    torch.testing.assert_close(aligned.mean((2, 3)), reference.mean((2, 3)))
    torch.testing.assert_close(aligned.std((2, 3)), reference.std((2, 3)))


def test_wavelet_takes_low_frequencies_from_the_reference() -> None:
    reference = torch.rand(1, 3, 1, 1).expand(1, 3, 64, 64)
    detail = (torch.arange(64) % 2 * 0.2 - 0.1).expand(1, 3, 64, 64)
    aligned = align_wavelet(0.5 + detail, reference)
    inner = (..., slice(None), slice(2, -2))
    torch.testing.assert_close(aligned[inner], (reference + detail)[inner], atol=0.02, rtol=0)


@pytest.mark.parametrize(
    ("changes", "words"),
    [({"colour": "sepia"}, "adain"), ({"steps": 0}, "at least one"), ({"nonsense": 1}, "nonsense")],
)
def test_bad_sampler_settings_are_refused(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        SamplerSettings.from_config({**SAMPLER, **changes})


def test_bad_requests_are_refused() -> None:
    restore = restorer(TowardsLR()).restore_batch
    with pytest.raises(UserError, match="one size"):
        restore([picture(8, 8, 0), picture(8, 9, 0)], ["", ""], [0, 1])
    with pytest.raises(UserError, match="at least 1"):
        restore([picture(8, 8, 0)], [""], [0], 0.5)


def test_the_suffix_is_added_to_the_prompt() -> None:
    assert restorer(TowardsLR()).positive("A cat on a wall. ") == "A cat on a wall, good"
    assert restorer(TowardsLR(), positive_suffix="").positive("A cat") == "A cat"
    assert restorer(TowardsLR()).positive("") == "good"

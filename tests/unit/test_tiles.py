"""Images of any size in tiles: nothing changes where one tile is enough, and no seam shows where it is not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL
from tiny_checkpoint import picture
from tiny_sd3 import randomise, tiny_network
from torch import Tensor
from torch.nn import functional as F

from dit4sr.autoencoder_tiling import decode_bands, encode_tiled
from dit4sr.autoencoders import BlockDCT, DiffusersAutoencoder
from dit4sr.errors import UserError
from dit4sr.prompts import HashingTextEncoder
from dit4sr.restoration.colour import STRIP, align, align_adain, align_wavelet
from dit4sr.restoration.restorer import Restorer
from dit4sr.restoration.sampler_settings import SamplerSettings
from dit4sr.sampling import TiledNetwork
from dit4sr.tiles import TileSettings, check_tile, ramp_weights, tile_starts

ROOT = Path(__file__).parents[2]


def tiny_kl(seed: int = 0) -> DiffusersAutoencoder:
    """An AutoencoderKL at ×4 with group norms and attention, random everywhere."""
    model = AutoencoderKL(
        block_out_channels=(8, 8, 8),
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        layers_per_block=1,
        latent_channels=16,
        norm_num_groups=4,
        use_quant_conv=False,
        use_post_quant_conv=False,
    )
    randomise(model, seed)
    return DiffusersAutoencoder(model)


def image(height: int, width: int) -> Tensor:
    return torch.from_numpy(picture(height, width, 0)).permute(2, 0, 1)[None] / 255


def border_ratio(restored: Tensor, starts: list[int], size: int) -> float:
    """Mean gradient across the borders of tiles along the columns over the mean gradient elsewhere.

    Args:
        restored: (…, W).
        starts: of the tiles; their ends are ``size`` further on.
        size: of a tile.
    """
    gradient = restored.diff(dim=-1).abs().flatten(0, -2).mean(0)
    borders = {x - 1 for start in starts for x in (start, start + size) if 0 < x < restored.shape[-1]}
    at = torch.tensor(sorted(borders))
    elsewhere = torch.ones_like(gradient, dtype=torch.bool)
    elsewhere[at] = False
    return float(gradient[at].mean() / gradient[elsewhere].mean())


@pytest.mark.parametrize("length", [5, 8, 9, 20, 61])
@pytest.mark.parametrize("overlap", [0, 1, 4, 7])
def test_ramps_add_up_to_one(length: int, overlap: int) -> None:
    total = torch.zeros(length)
    for start, weights in ramp_weights(length, 8, overlap):
        assert (weights > 0).all()
        total[start : start + len(weights)] += weights
    torch.testing.assert_close(total, torch.ones(length))


@pytest.mark.parametrize(
    ("tile", "words"),
    [((7, 2), "multiple of the patch"), ((20, 2), "ends at 18"), ((8, 8), "overlap 8"), ((0, 0), "positive")],
)
def test_impossible_tiles_are_refused(tile: tuple[int, int], words: str) -> None:
    with pytest.raises(UserError, match=words):
        check_tile(TileSettings(*tile), patch=2, largest=18)


def decode_tiled(*arguments: Any) -> Tensor:
    return torch.cat(list(decode_bands(*arguments)), dim=-2)


@torch.no_grad()
def test_an_autoencoder_of_independent_blocks_is_unchanged_by_tiles() -> None:
    coder, whole = BlockDCT(), image(88, 120)
    tile = TileSettings(8, 3)
    latent = encode_tiled(coder, lambda rows, columns: whole[..., rows, columns], 88, 120, tile)
    torch.testing.assert_close(latent, coder.encode(whole), rtol=0, atol=2e-6)
    decoded = decode_tiled(coder, latent, 85, 119, tile)
    torch.testing.assert_close(decoded, coder.decode(latent)[..., :85, :119], rtol=0, atol=1e-6)


@torch.no_grad()
def test_what_fits_a_tile_of_the_autoencoder_is_coded_whole() -> None:
    coder, whole, noise = tiny_kl(), image(32, 40), torch.randn(1, 16, 8, 10)
    tile = TileSettings(10, 3)
    latent = encode_tiled(coder, lambda rows, columns: whole[..., rows, columns], 32, 40, tile, noise)
    assert torch.equal(latent, coder.encode(whole, noise))
    assert torch.equal(decode_tiled(coder, latent, 30, 37, tile), coder.decode(latent)[..., :30, :37])


@torch.no_grad()
def test_the_autoencoders_tiles_leave_no_seam() -> None:
    """Its tiles differ (group norm, attention, zeros around them), and are blended over their overlap."""
    coder, tile = tiny_kl(), TileSettings(16, 6)
    whole = torch.rand(1, 3, 64, 256, generator=torch.Generator().manual_seed(0))
    latent = encode_tiled(coder, lambda rows, columns: whole[..., rows, columns], 64, 256, tile)
    starts = tile_starts(64, 16, 6)
    assert border_ratio(latent, starts, 16) == pytest.approx(1, abs=0.1)
    decoded = decode_tiled(coder, latent, 64, 256, tile)
    assert border_ratio(decoded, [4 * start for start in starts], 64) == pytest.approx(1, abs=0.1)
    # The measure sees a seam where there is one: the same tiles side by side.
    pieces = [coder.decode(latent[..., x : x + 16]) for x in range(0, 64, 16)]
    assert border_ratio(torch.cat(pieces, dim=-1), [64 * n for n in range(4)], 64) > 1.5


@pytest.mark.parametrize(("height", "width"), [(256, 64), (251, 61), (150, 250), (129, 70)])
@torch.no_grad()
def test_an_image_is_decoded_from_above_to_below(height: int, width: int) -> None:
    """As all tiles with their weights add up; also where padding fills the last of them."""
    coder, tile = tiny_kl(), TileSettings(16, 6)
    latent = torch.randn(2, 16, 64, 64, generator=torch.Generator().manual_seed(0))
    expected = torch.zeros(2, 3, 256, 256)
    for y, down in ramp_weights(64, 16, 6):
        for x, right in ramp_weights(64, 16, 6):
            piece = coder.decode(latent[..., y : y + 16, x : x + 16])
            weight = torch.outer(down.repeat_interleave(4), right.repeat_interleave(4))
            expected[..., 4 * y : 4 * y + 64, 4 * x : 4 * x + 64] += piece * weight
    bands = list(decode_bands(coder, latent, height, width, tile))
    assert len(bands) > 1 and max(band.shape[-2] for band in bands) <= 64
    assert torch.equal(torch.cat(bands, dim=-2), expected[..., :height, :width])


def network_restorer(tile: TileSettings, coder: object | None = None, batch: int = 4) -> Restorer:
    settings = SamplerSettings(3, 3.0, 2.0, "noise", 1.0, "", "", batch, "none")
    network = tiny_network(in_channels=16, out_channels=16)
    encoder = HashingTextEncoder(5, 12, 10)
    return Restorer(network, coder or BlockDCT(), encoder, settings, tile, torch.device("cpu"), 2, 8)  # type: ignore[arg-type]


def test_what_fits_one_tile_is_restored_as_without_tiles() -> None:
    lq = picture(16, 12, 0)
    untiled = network_restorer(TileSettings(18, 0)).restore(lq, "a cat", seed=1)
    np.testing.assert_array_equal(network_restorer(TileSettings(16, 6)).restore(lq, "a cat", seed=1), untiled)
    assert not np.array_equal(network_restorer(TileSettings(8, 2)).restore(lq, "a cat", seed=1), untiled)


@torch.no_grad()
def test_latent_tiles_of_a_random_network_leave_no_seam() -> None:
    network = tiny_network(in_channels=16, out_channels=16)
    generator = torch.Generator().manual_seed(0)
    z, lr = torch.randn(2, 4, 16, 12, 120, generator=generator).unbind(0)
    text = torch.randn(4, 5, 12, generator=generator), torch.randn(4, 10, generator=generator)
    velocity = TiledNetwork(network, 12, 4)(z, lr, torch.full((4,), 500.0), *text)
    assert border_ratio(velocity, tile_starts(120, 12, 4), 12) == pytest.approx(1, abs=0.1)


@pytest.mark.parametrize(("height", "width", "upscale"), [(16, 300, 1), (300, 16, 1), (16, 16, 6.3), (37, 23, 1.5)])
def test_any_size_through_tiles(height: int, width: int, upscale: float) -> None:
    restored = network_restorer(TileSettings(12, 4), batch=16).restore(
        picture(height, width, 0), "", seed=0, upscale=upscale
    )
    assert restored.shape == (round(height * upscale), round(width * upscale), 3)


def test_colours_are_aligned_strip_by_strip_as_in_one_piece() -> None:
    generator = torch.Generator().manual_seed(0)
    restored, reference = torch.rand(2, 2, 3, 3 * STRIP + 5, 40, generator=generator).unbind(0)

    def low_pass(x: Tensor) -> Tensor:
        line = torch.tensor([0.25, 0.5, 0.25])
        kernel = torch.outer(line, line).expand(3, 1, 3, 3)
        for radius in (1, 2, 4, 8, 16):
            x = F.conv2d(F.pad(x, (radius,) * 4, mode="replicate"), kernel, dilation=radius, groups=3)
        return x

    expected = restored - low_pass(restored) + low_pass(reference)
    torch.testing.assert_close(align_wavelet(restored, reference), expected, rtol=0, atol=1e-5)
    aligned = align_adain(restored, reference)
    torch.testing.assert_close(aligned.mean((2, 3)), reference.mean((2, 3)))
    torch.testing.assert_close(aligned.std((2, 3)), reference.std((2, 3)))
    # Whatever rows come together.
    height = restored.shape[-2]
    for sizes in ([1] * height, [100, height - 100], [5, 31, 32, 33, height - 101]):
        for name, whole in (("wavelet", align_wavelet), ("adain", align_adain), ("none", lambda x, _: x)):
            strips = align(
                name, lambda s=sizes: iter(restored.split(s, -2)), lambda a, b: reference[..., a:b, :], height
            )  # type: ignore[misc]
            torch.testing.assert_close(torch.cat(list(strips), -2), whole(restored, reference), rtol=0, atol=1e-6)


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="the benchmark measures memory on Linux alone")
def test_memory_grows_by_the_images_own_buffers(monkeypatch: pytest.MonkeyPatch) -> None:
    """3 bytes a pixel are the result and 1 each latent; the image in float32, which is nowhere whole, has 12.

    Of the tensors, byte by byte: what the system counts for a process also follows from what others have left free in
    it, and from which of its files' pages the system has dropped meanwhile.
    """
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    import memory
    import predicted

    threads = torch.get_num_threads()
    try:
        small, large = (predicted.peak_of(lambda s=s: memory.measure("kl", s, "wavelet", 1.0)) for s in (1024, 1536))
    finally:
        torch.set_num_threads(threads)
    assert large - small < 6 * (1536**2 - 1024**2)

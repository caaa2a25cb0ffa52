"""The block-DCT autoencoder, and diffusers' autoencoders behind the same interface."""

from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL, AutoencoderTiny
from skimage import data
from sklearn.datasets import load_sample_images
from torch import Tensor

from dit4sr.autoencoders import BlockDCT, DiffusersAutoencoder, build_autoencoder, dct_matrix
from dit4sr.errors import UserError


def photographs() -> dict[str, Tensor]:
    """What ships with scikit-image and scikit-learn, cut to multiples of 4: (1, 3, H, W) in [0, 1]."""
    images = {name: getattr(data, name)() for name in ("astronaut", "chelsea", "coffee", "rocket")}
    images["motorcycle"] = data.stereo_motorcycle()[0]
    images["china"], images["flower"] = load_sample_images().images
    tensors = {name: torch.tensor(image).movedim(-1, 0)[None] / 255 for name, image in images.items()}
    return {name: t[..., : t.shape[-2] // 4 * 4, : t.shape[-1] // 4 * 4] for name, t in tensors.items()}


def test_dct_matrix_is_orthonormal() -> None:
    for n in 1, 4, 8:
        torch.testing.assert_close(dct_matrix(n) @ dct_matrix(n).T, torch.eye(n, dtype=torch.float64))
    torch.testing.assert_close(dct_matrix(4)[0], torch.full((4,), 0.5, dtype=torch.float64))


def test_basis_is_orthonormal() -> None:
    basis = BlockDCT().basis.flatten(1)
    assert basis.shape == (16, 48)
    torch.testing.assert_close(basis @ basis.T, torch.eye(16), rtol=0, atol=1e-6)


def test_photographs_survive() -> None:
    autoencoder, psnr = BlockDCT(), {}
    for name, image in photographs().items():
        latent = autoencoder.encode(image)
        assert latent.shape == (1, 16, image.shape[-2] // 4, image.shape[-1] // 4)
        decoded = autoencoder.decode(latent)
        assert decoded.shape == image.shape
        assert decoded.min() >= 0 and decoded.max() <= 1
        psnr[name] = float(-10 * torch.log10((decoded - image).square().mean()))
    assert sum(psnr.values()) / len(psnr) >= 34, psnr
    assert min(psnr.values()) >= 31, psnr


def test_latents_of_photographs_are_scaled_as_stated() -> None:
    """Over all photographs together: mean about 0; deviations that fall from about 4 (mean luma) to 0.7 (detail)."""
    latents = torch.cat([BlockDCT().encode(image).flatten(2) for image in photographs().values()], dim=2)[0]
    deviations = latents.std(1)
    assert latents.mean(1).abs().max() < 1.6
    assert 3 < deviations[0] < 5 and deviations[0] == deviations.max()
    assert deviations.min() > 0.5
    assert deviations[1:14].max() < 2


def test_encoding_undoes_decoding() -> None:
    """On the 16-dimensional subspace nothing is lost, as long as nothing is clipped."""
    autoencoder = BlockDCT()
    latent = autoencoder.encode(torch.full((2, 3, 16, 24), 0.5))
    latent = latent + 0.1 * torch.randn(latent.shape, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(autoencoder.encode(autoencoder.decode(latent)), latent, rtol=1e-4, atol=1e-4)


def test_encoding_is_affine() -> None:
    autoencoder = BlockDCT()
    a, b = torch.rand(2, 1, 3, 16, 24, generator=torch.Generator().manual_seed(0)).unbind(0)
    mixed = 0.3 * autoencoder.encode(a) + 0.7 * autoencoder.encode(b)
    torch.testing.assert_close(autoencoder.encode(0.3 * a + 0.7 * b), mixed, rtol=1e-4, atol=1e-4)


def test_blocks_are_independent() -> None:
    image = torch.rand(1, 3, 16, 24, generator=torch.Generator().manual_seed(0))
    changed = image.clone()
    changed[..., 4:8, 8:12] = 0
    moved = (BlockDCT().encode(image) != BlockDCT().encode(changed)).any(1)[0]
    expected = torch.zeros(4, 6, dtype=torch.bool)
    expected[1, 2] = True
    assert torch.equal(moved, expected)


def test_a_weightless_autoencoder_leaves_nothing_in_a_checkpoint() -> None:
    assert not BlockDCT().state_dict()
    assert not list(BlockDCT().parameters())


@pytest.mark.parametrize("shape", [(1, 3, 16, 18), (1, 3, 18, 16), (1, 1, 16, 16), (3, 16, 16)])
def test_impossible_images_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"multiples of 4|\(B, 3, H, W\)"):
        BlockDCT().encode(torch.zeros(shape))


def tiny_kl() -> AutoencoderKL:
    return AutoencoderKL(
        block_out_channels=(8, 8, 8),
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=4,
        scaling_factor=1.5305,
        shift_factor=0.0609,
        use_quant_conv=False,
        use_post_quant_conv=False,
    )


@torch.no_grad()
def test_kl_normalises_a_sample_of_its_posterior() -> None:
    model = tiny_kl()
    autoencoder = DiffusersAutoencoder(model)
    assert (autoencoder.scale, autoencoder.channels) == (4, 4)
    image = torch.rand(2, 3, 16, 24)
    posterior = model.encode(image * 2 - 1).latent_dist
    noise = torch.randn(2, 4, 4, 6)
    torch.testing.assert_close(autoencoder.encode(image), (posterior.mean - 0.0609) * 1.5305)
    z = posterior.mean + posterior.std * noise
    torch.testing.assert_close(autoencoder.encode(image, noise), (z - 0.0609) * 1.5305)
    decoded = autoencoder.decode((z - 0.0609) * 1.5305)
    torch.testing.assert_close(decoded, ((model.decode(z).sample + 1) / 2).clamp(0, 1), rtol=1e-4, atol=1e-5)
    assert not any(p.requires_grad for p in autoencoder.parameters())


@torch.no_grad()
def test_tiny_gives_normalised_latents_itself() -> None:
    model = AutoencoderTiny(
        encoder_block_out_channels=(8, 8, 8),
        decoder_block_out_channels=(8, 8, 8),
        num_encoder_blocks=(1, 1, 1),
        num_decoder_blocks=(1, 1, 1),
        latent_channels=4,
        scaling_factor=1.5305,
    )
    autoencoder = DiffusersAutoencoder(model)
    assert (autoencoder.scale, autoencoder.channels) == (4, 4)
    image = torch.rand(1, 3, 16, 24)
    latent = autoencoder.encode(image)
    assert latent.shape == (1, 4, 4, 6)
    torch.testing.assert_close(latent, model.encode(image * 2 - 1).latents)
    assert torch.equal(autoencoder.encode(image, torch.randn_like(latent)), latent)
    torch.testing.assert_close(autoencoder.decode(latent), ((model.decode(latent).sample + 1) / 2).clamp(0, 1))


def test_building_by_name(tmp_path: Path) -> None:
    assert isinstance(build_autoencoder({"name": "block_dct"}, None), BlockDCT)
    model = tiny_kl()
    model.save_pretrained(tmp_path / "base" / "vae")
    model.save_pretrained(tmp_path / "own")
    for config, pretrained in (
        ({"name": "kl"}, str(tmp_path / "base")),
        ({"name": "kl", "source": str(tmp_path / "own")}, None),
    ):
        autoencoder = build_autoencoder(config, pretrained)
        assert isinstance(autoencoder, DiffusersAutoencoder)
        torch.testing.assert_close(autoencoder.model.state_dict(), model.state_dict())


@pytest.mark.parametrize(
    ("config", "hint"),
    [
        ({"name": "vq"}, "choose one of block_dct, kl, tiny"),
        ({"name": "kl"}, "needs weights"),
        ({"name": "tiny", "source": "/no/such/folder"}, "/no/such/folder"),
    ],
)
def test_impossible_autoencoders_are_refused(config: dict[str, str], hint: str) -> None:
    with pytest.raises(UserError, match=hint):
        build_autoencoder(config, None)

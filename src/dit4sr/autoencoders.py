"""Autoencoders behind one interface: images in [0, 1] ↔ normalised latents.

``encode`` takes (B, 3, H, W) in [0, 1], H and W multiples of ``scale``, and returns the
normalised latent (B, ``channels``, H/scale, W/scale); ``decode`` is its inverse, clipped to
[0, 1]. Normalised means (z − shift_factor)·scaling_factor for diffusers' models.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, Protocol, Self

import torch

# diffusers looks for ModelMixin in the module of a component that it loads.
from diffusers import ModelMixin  # noqa: F401
from diffusers.configuration_utils import register_to_config
from diffusers.utils.accelerate_utils import apply_forward_hook
from torch import Tensor, nn

from dit4sr.errors import UserError
from dit4sr.pretrained import component_folder, read_config, weight_files
from dit4sr.tensor_files import read_headers
from dit4sr.weightless import WeightlessModel


class Autoencoder(Protocol):
    """What training and restoration need of an autoencoder."""

    scale: int
    """Pixels per latent pixel, along each side."""
    channels: int
    """Latent channels."""
    has_posterior: bool
    """Whether ``encode`` samples, where it is given noise."""

    def encode(self, image: Tensor, noise: Tensor | None = None) -> Tensor:
        """(B, 3, H, W) in [0, 1] → normalised latent (B, C, H/scale, W/scale).

        Args:
            noise: standard normal draws in the latent's shape, to sample the posterior with;
                None takes its mode. Autoencoders without a posterior ignore it.
        """
        ...

    def decode(self, latent: Tensor) -> Tensor:
        """Normalised latent → (B, 3, H, W) in [0, 1]."""
        ...


def check_image(image: Tensor, scale: int) -> None:
    """Refuse an image that cannot be encoded.

    Raises:
        ValueError: unless (B, 3, H, W) with H and W multiples of ``scale``.
    """
    if image.ndim != 4 or image.shape[1] != 3:
        raise ValueError(f"an image batch is (B, 3, H, W), not {tuple(image.shape)}")
    if image.shape[-2] % scale or image.shape[-1] % scale:
        raise ValueError(f"image of {image.shape[-2]}×{image.shape[-1]}: both sides must be multiples of {scale}")


def dct_matrix(n: int) -> Tensor:
    """The orthonormal DCT-II, (n, n): row k is the k-th basis function."""
    k, i = torch.arange(n, dtype=torch.float64)[:, None], torch.arange(n, dtype=torch.float64)[None]
    matrix = torch.cos(math.pi * (2 * i + 1) * k / (2 * n)) * math.sqrt(2 / n)
    matrix[0] /= math.sqrt(2)
    return matrix


LATENT_MEAN = (2.87, *(0.0,) * 13, 0.22, 0.0)
COEFFICIENT_STD = (
    (1.7, 0.245, 0.245, 0.135, 0.133, 0.135, 0.078, 0.097, 0.093, 0.082, 0.062, 0.073, 0.0625, 0.05)  # luma
    + (0.57, 0.25)  # chroma
)
"""Mean and deviation of :class:`BlockDCT`'s coefficients over photographs (rounded means of
astronaut, motorcycle, china and flower and of 60 of BSDS500's training photos)."""

LATENT_STD = tuple(0.25 * math.sqrt(1.7 * std) for std in COEFFICIENT_STD)
"""What a coefficient is divided by. With the square root of the deviations the latent's deviations fall from 4
(mean luma) to 0.7 (fine detail), not all to 1: the mean luma, which decides the PSNR, is then loud enough in the
loss to be learned precisely, and fine detail still stands well above the noise of the last steps."""


class BlockDCT(WeightlessModel):
    """An autoencoder without weights: a 4×4 block DCT of luma and two opponent chromas.

    Of a block's 48 coefficients 16 are kept: 14 of luma in zigzag order and the mean of each
    chroma. Both the colour basis (R+G+B, R−B, R−2G+B, normalised) and the DCT are orthonormal,
    so a latent's squared error is the image's, channel by channel weighted by the square of ``std``.
    It computes in float32, whatever dtype its pipeline is cast to: its constants are all that it is.

    Args:
        mean, std: of each channel's coefficients; None for :data:`LATENT_MEAN` and :data:`LATENT_STD`.
    """

    scale = 4
    channels = 16
    has_posterior = False
    basis: Tensor
    latent_mean: Tensor
    latent_std: Tensor
    KEPT = (
        *((0, u, v) for u, v in ((0, 0), (0, 1), (1, 0), (0, 2), (1, 1), (2, 0), (0, 3), (1, 2), (2, 1), (3, 0))),
        *((0, u, v) for u, v in ((1, 3), (2, 2), (3, 1), (2, 3))),
        (1, 0, 0),
        (2, 0, 0),
    )
    """(colour plane, vertical frequency, horizontal frequency) of each latent channel."""

    @register_to_config
    def __init__(self, mean: tuple[float, ...] | None = None, std: tuple[float, ...] | None = None) -> None:
        super().__init__()
        colour = torch.tensor([[1.0, 1, 1], [1, 0, -1], [1, -2, 1]], dtype=torch.float64)
        colour = colour / colour.norm(dim=1, keepdim=True)
        dct = dct_matrix(self.scale)
        # (C, 3, 4, 4): basis image of each latent channel; encoding is a strided convolution
        # with it and decoding the transposed one.
        basis = torch.stack([torch.einsum("c,y,x->cyx", colour[p], dct[u], dct[v]) for p, u, v in self.KEPT])
        self.register_buffer("basis", basis.float(), persistent=False)
        for name, given, default in (("latent_mean", mean, LATENT_MEAN), ("latent_std", std, LATENT_STD)):
            self.register_buffer(name, torch.tensor(default if given is None else given), persistent=False)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """Follow to another device, but not to another dtype."""
        for name, buffer in self._buffers.items():
            if buffer is not None:
                self._buffers[name] = buffer.to(fn(buffer).device)
        return self

    @apply_forward_hook
    def encode(self, image: Tensor, noise: Tensor | None = None) -> Tensor:
        check_image(image, self.scale)
        coefficients = nn.functional.conv2d(image.float(), self.basis, stride=self.scale)
        return (coefficients - self.latent_mean[:, None, None]) / self.latent_std[:, None, None]

    @apply_forward_hook
    def decode(self, latent: Tensor) -> Tensor:
        coefficients = latent.float() * self.latent_std[:, None, None] + self.latent_mean[:, None, None]
        return nn.functional.conv_transpose2d(coefficients, self.basis, stride=self.scale).clamp(0, 1)


class DiffusersAutoencoder(nn.Module):
    """Diffusers' AutoencoderKL or AutoencoderTiny behind this module's interface, frozen.

    AutoencoderKL: latents are (z − shift_factor)·scaling_factor, z a sample of the posterior
    (SD3.5: 0.0609 and 1.5305). AutoencoderTiny is trained to give normalised latents itself.
    The model computes in its own dtype; what goes in and comes out is float32.

    Args:
        model: the loaded autoencoder.
    """

    def __init__(self, model: Any) -> None:
        super().__init__()
        from diffusers import AutoencoderKL

        self.model = model.requires_grad_(False).eval()
        self.has_posterior = isinstance(model, AutoencoderKL)
        config = model.config
        self.channels = config.latent_channels
        levels = config.block_out_channels if self.has_posterior else config.decoder_block_out_channels
        self.scale = 2 ** (len(levels) - 1)
        self.shift_factor = (getattr(config, "shift_factor", None) or 0.0) if self.has_posterior else 0.0
        self.scaling_factor = config.scaling_factor if self.has_posterior else 1.0

    def encode(self, image: Tensor, noise: Tensor | None = None) -> Tensor:
        check_image(image, self.scale)
        encoded = self.model.encode((2 * image - 1).to(self.model.dtype))
        if not self.has_posterior:
            return encoded.latents.float()
        posterior = encoded.latent_dist
        z = posterior.mean.float()
        if noise is not None:
            z = z + posterior.std.float() * noise.to(z)
        return (z - self.shift_factor) * self.scaling_factor

    def decode(self, latent: Tensor) -> Tensor:
        z = latent.float() / self.scaling_factor + self.shift_factor
        return (self.model.decode(z.to(self.model.dtype)).sample.float() / 2 + 0.5).clamp(0, 1)


AUTOENCODERS = ("block_dct", "kl", "tiny")


def build_autoencoder(
    config: Mapping[str, Any], pretrained: str | None, *, local_files_only: bool = False
) -> Autoencoder:
    """Build the autoencoder that a backbone names.

    Args:
        config: ``name``: block_dct, kl or tiny; for the latter two optionally ``source``, a
            folder or hub id of its own (else the backbone's ``vae`` subfolder).
        pretrained: the backbone's folder or hub id.
        local_files_only: never ask the hub.

    Raises:
        UserError: for an unknown name, or weights that cannot be loaded.
    """
    name = config["name"]
    if name == "block_dct":
        return BlockDCT()
    if name not in AUTOENCODERS:
        raise UserError(f"autoencoder.name={name!r}: choose one of {', '.join(AUTOENCODERS)}")
    source, subfolder = (config["source"], None) if config.get("source") else (pretrained, "vae")
    if not source:
        raise UserError(
            f"autoencoder {name!r} needs weights: set backbone.pretrained or autoencoder.source to a folder"
        )
    import diffusers

    kind = diffusers.AutoencoderKL if name == "kl" else diffusers.AutoencoderTiny
    if subfolder is not None:
        source = component_folder(source, subfolder, local_files_only=local_files_only)
        read_config(source, [kind.__name__])
        read_headers(weight_files(source))  # a damaged or incomplete file is told of in one line
    try:
        model = kind.from_pretrained(source, use_safetensors=True, local_files_only=local_files_only)
    except (OSError, ValueError) as error:
        raise UserError(f"no {kind.__name__} at {source}: download it and set its folder") from error
    return DiffusersAutoencoder(model)

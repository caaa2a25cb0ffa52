"""What the sampling benchmark samples: latents of one training crop, and how two results are compared."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from dit4sr.autoencoders import BlockDCT
from dit4sr.models.flops import network_inputs, scale_of


@dataclass
class Case:
    """What is sampled.

    Attributes:
        arguments: of :func:`sample_euler`, beside the network.
        side: of the latent, in latent pixels.
    """

    arguments: dict[str, Any]
    side: int


def photographs(batch: int, pixels: int) -> Tensor:
    """Crops of photos that ship inside scikit-image, made 4 times smaller and larger again: (B, 3, pixels, pixels)."""
    from skimage import data

    photos = [data.astronaut()[:, 64:], data.coffee()[:, 100:], data.chelsea()]
    crops = [torch.from_numpy(photos[i % 3][:pixels, :pixels].copy()).permute(2, 0, 1) / 255 for i in range(batch)]
    small = torch.nn.functional.interpolate(torch.stack(crops), scale_factor=0.25, mode="bicubic", antialias=True)
    return torch.nn.functional.interpolate(small, scale_factor=4, mode="bicubic").clamp(0, 1)


def case_of(backbone: Any, device: str, batch: int, steps: int, guidance: float, dtype: torch.dtype) -> Case:
    """Random latents of one training crop, and random text."""
    side = max(backbone["crop"] // scale_of(backbone), backbone["tile"]["size"])
    noise, lr, _, tokens, pooled = (x.to(dtype) for x in network_inputs(backbone, side, batch, device))
    if backbone["autoencoder"]["name"] == "block_dct":
        lr = BlockDCT().encode(photographs(batch, side * scale_of(backbone))).to(device)
    arguments = {
        "lr_latent": lr.float(),
        "noise": noise.float(),
        "encoder_hidden_states": tokens,
        "pooled_projections": pooled,
        "negative_encoder_hidden_states": tokens.flip(1),
        "negative_pooled_projections": pooled.flip(1),
        "steps": steps,
        "guidance": guidance,
    }
    return Case(arguments, side)


def psnr(result: Tensor, reference: Tensor, backbone: Any) -> str:
    """In dB: of the images where they are decoded without weights, else of the latents, their peak the range."""
    if backbone["autoencoder"]["name"] == "block_dct":
        result, reference = (BlockDCT().decode(latent.cpu()) for latent in (result, reference))
        spread = torch.ones(())
    else:
        spread = reference.max() - reference.min()
    error = (result.double() - reference.double()).square().mean()
    return "∞" if error == 0 else f"{float(10 * torch.log10(spread.double() ** 2 / error)):.1f}"

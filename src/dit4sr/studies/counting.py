"""Parameters and FLOPs of the networks at full size, on the meta device: no weights and no memory are needed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import nn

from dit4sr.models.build import build_on_meta, count_parameters
from dit4sr.models.flops import flops_of, forward_flops, scale_of
from dit4sr.tiles import tile_starts

SD35_VAE: dict[str, Any] = {
    "in_channels": 3,
    "out_channels": 3,
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "block_out_channels": (128, 256, 512, 512),
    "layers_per_block": 2,
    "latent_channels": 16,
    "scaling_factor": 1.5305,
    "shift_factor": 0.0609,
    "use_quant_conv": False,
    "use_post_quant_conv": False,
}
"""Fields of Stable Diffusion 3.5's autoencoder (its ``vae/config.json``)."""


@dataclass(frozen=True)
class Work:
    """What restoring one image of a size costs.

    Attributes:
        target: side of the restored image in pixels.
        steps: Euler steps.
        tiles: latent tiles that cover the image.
        passes: network inputs of a tile and step: 2 with guidance, 1 without.
    """

    target: int
    steps: int
    tiles: int
    passes: int


@dataclass(frozen=True)
class Count:
    """Parameters, and floating-point operations (a multiply-add counts 2; matrix products and convolutions alone).

    Attributes:
        total: distinct parameters.
        trainable: of which training changes.
        dead: parameters of the released checkpoints that no forward pass reads, see :func:`dead_parameters`.
        forward: FLOPs of one forward pass over one tile.
        step: FLOPs of one Euler step: all tiles, both passes of guidance.
        coding: FLOPs of the autoencoder, encoding and decoding once.
        image: FLOPs of a restored image: all steps and the coding; the text encoders are not counted.
    """

    total: int
    trainable: int
    dead: int
    forward: int
    step: int
    coding: int

    image: int

    @property
    def paper(self) -> int:
        """Parameters in the paper's own accounting: with the dead ones."""
        return self.total + self.dead


def work_of(backbone: Mapping[str, Any], *, target: int, steps: int, guidance: float) -> Work:
    """The work that restoring one square image is, by the backbone's tiles."""
    tile = backbone["tile"]
    side = len(tile_starts(latent_side(backbone, target), tile["size"], tile["overlap"]))
    return Work(target, steps, side * side, 1 if guidance == 1 else 2)


def latent_side(backbone: Mapping[str, Any], target: int) -> int:
    """Latent pixels of a side, at least one tile's."""
    return max(-(-target // scale_of(backbone)), backbone["tile"]["size"])


def count(model: Mapping[str, Any], backbone: Mapping[str, Any], work: Work) -> Count:
    """Count a model on a backbone.

    Args:
        model: configs/model.
        backbone: configs/backbone; its ``pretrained`` says what trains, and is not read.
        work: see :func:`work_of`.
    """
    network = build_on_meta(model, backbone).eval()
    parameters = count_parameters(network)
    side = min(backbone["tile"]["size"], latent_side(backbone, work.target))
    forward = forward_flops(network, backbone, side)
    step = forward * work.tiles * work.passes
    coding = coding_flops(backbone, work.target)
    released = model["network"] == "dit4sr" and bool(backbone["pretrained"])
    dead = dead_parameters(backbone) if released else 0
    return Count(
        total=parameters.total,
        trainable=parameters.trainable,
        dead=dead,
        forward=forward,
        step=step,
        coding=coding,
        image=step * work.steps + coding,
    )


def coding_flops(backbone: Mapping[str, Any], target: int) -> int:
    """FLOPs of encoding the upsampled input and decoding the result, in one piece."""
    side = latent_side(backbone, target)
    return _coding_flops(backbone["autoencoder"]["name"], side * scale_of(backbone), side)


@cache
def _coding_flops(name: str, pixels: int, side: int) -> int:
    autoencoder = random_autoencoder({"autoencoder": {"name": name}}, "meta")
    image = torch.zeros(1, 3, pixels, pixels, device="meta")
    latent = torch.zeros(1, autoencoder.channels, side, side, device="meta")
    return flops_of(lambda: autoencoder.encode(image)) + flops_of(lambda: autoencoder.decode(latent))


def random_autoencoder(backbone: Mapping[str, Any], device: str | torch.device) -> Any:
    """The backbone's autoencoder without its weights: for counting and timing."""
    from dit4sr.autoencoders import BlockDCT, DiffusersAutoencoder

    if backbone["autoencoder"]["name"] == "block_dct":
        return BlockDCT().to(device)
    from diffusers import AutoencoderKL

    with torch.device(device):
        model = AutoencoderKL(**SD35_VAE)
    return DiffusersAutoencoder(model)


def dead_parameters(backbone: Mapping[str, Any]) -> int:
    """Text projections inside the dual attention, which the released checkpoints carry and nothing reads.

    Per block with dual attention: ``add_q_proj``, ``add_k_proj``, ``add_v_proj`` and ``to_add_out`` (D×D with
    bias) and the two norms of the text's heads. The dual attention has no text stream, so they are never used;
    2716.8M of the paper's table 2 contain them.
    """
    from diffusers.models.attention_processor import Attention

    fields = backbone["transformer"]
    width = fields["attention_head_dim"] * fields["num_attention_heads"]

    def attention(**text: Any) -> nn.Module:
        with torch.device("meta"):
            return Attention(
                query_dim=width,
                heads=fields["num_attention_heads"],
                dim_head=fields["attention_head_dim"],
                out_dim=width,
                bias=True,
                qk_norm=fields["qk_norm"],
                **text,
            )

    def size(module: nn.Module) -> int:
        return sum(p.numel() for p in module.parameters())

    with_text = size(attention(added_kv_proj_dim=width, context_pre_only=False))
    return len(fields["dual_attention_layers"]) * (with_text - size(attention()))

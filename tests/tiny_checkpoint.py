"""Configs of the verbs, checkpoints of tiny random networks, and small pictures."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig, OmegaConf
from PIL import Image
from tiny_sd3 import randomise

from dit4sr.config import config_dir
from dit4sr.models.build import build_network
from dit4sr.models.checkpoint import IDENTITY
from dit4sr.sharded_files import rows_of, take_out, write_index, write_shard

TINY = (
    "backbone.transformer.num_layers=2",
    "backbone.transformer.patch_size=2",
    "backbone.transformer.num_attention_heads=2",
    "backbone.transformer.attention_head_dim=8",
    "backbone.transformer.caption_projection_dim=16",
    "backbone.transformer.joint_attention_dim=12",
    "backbone.transformer.pooled_projection_dim=10",
    "backbone.transformer.pos_embed_max_size=16",
    "backbone.text_encoder.tokens=4",
    "backbone.text_encoder.width=12",
    "backbone.text_encoder.pooled_width=10",
    "backbone.tile.size=16",
)


def compose_verb(verb: str, *overrides: str) -> DictConfig:
    """The config that ``python <verb>.py <overrides>`` gets."""
    with initialize_config_dir(str(config_dir()), version_base="1.3"):
        return compose(verb, list(overrides))


def write_checkpoint(path: Path, *overrides: str, step: int = 7, seed: int = 0) -> dict[str, Any]:
    """Write a checkpoint as training would, of a tiny random network; return the config that it carries."""
    composed = compose_verb("train", "out=unused", *TINY, *overrides)
    config: dict[str, Any] = OmegaConf.to_container(composed, resolve=True)  # type: ignore[assignment]
    network = build_network(config["model"], config["backbone"], seed)
    randomise(network, seed)
    path.parent.mkdir(parents=True, exist_ok=True)
    weights = {n: p.detach().clone() for n, p in network.named_parameters() if p.requires_grad}
    identity = {name: config[name] for name in IDENTITY}
    torch.save({"dit4sr": identity, "ema": weights, "global_step": step}, path)
    return config


def write_sharded(folder: Path, checkpoint: dict[str, Any], ranks: int) -> Path:
    """As ``ranks`` processes would, one after the other; tensors with dimensions are split."""
    folder.mkdir(parents=True)
    plain, tensors = take_out(checkpoint, lambda tensor: tensor.ndim > 0)
    shards = []
    for rank in range(ranks):
        spans = {name: rows_of(rank, ranks, len(tensor)) for name, tensor in tensors.items()}
        held = {n: t[spans[n][0] : sum(spans[n])] for n, t in tensors.items()}
        shards.append(write_shard(folder, rank, ranks, held))
    write_index(folder, plain, {n: (t.dtype, tuple(t.shape)) for n, t in tensors.items()}, shards)
    return folder


def picture(height: int, width: int, seed: int) -> np.ndarray:
    """A smooth coloured picture with a few edges: uint8 (height, width, 3)."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width] / max(height, width)
    channels = [np.sin(2 * np.pi * (rng.uniform(1, 4) * x + rng.uniform(1, 4) * y + rng.uniform())) for _ in range(3)]
    image = 127 + 90 * np.stack(channels, -1)
    image[height // 4 : height // 2, width // 3 : width // 2] += rng.uniform(-60, 60, 3)
    return np.clip(image, 0, 255).astype(np.uint8)


def save(path: Path, image: np.ndarray) -> None:
    """Write a PNG, its folders made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image).save(path)


def load(path: Path) -> np.ndarray:
    """Read an image file as it is."""
    return np.array(Image.open(path))


def write_pairs(folder: Path, names: list[str], *, lq: int = 16, upscale: int = 4) -> None:
    """Write lq/<name>.png and hq/<name>.png; LR is the mean over blocks."""
    for name in names:
        # Seeded by the name, so that a picture does not depend on the others.
        hq = picture(lq * upscale, lq * upscale, sum(name.encode()))
        small = hq.reshape(lq, upscale, lq, upscale, 3).mean((1, 3)).round().astype(np.uint8)
        save(folder / "lq" / f"{name}.png", small)
        save(folder / "hq" / f"{name}.png", hq)

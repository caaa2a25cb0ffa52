"""Settings of acceleration, and a short sampling of a tiny network."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

from dit4sr.acceleration import AccelerationSettings
from dit4sr.sampling import sample_euler, sample_with_scheduler

NONE = AccelerationSettings(
    fold=False,
    fuse=False,
    batch_streams=False,
    cache=False,
    depth_wise="conv",
    attention="auto",
    channels_last=False,
    compile="none",
    compile_mode="default",
    compile_options={},
    cuda_graphs=False,
    quantise="none",
    reuse_below=None,
    network_dtype=None,
    autoencoder_dtype=None,
    tiny_vae=None,
)
EXACT = replace(NONE, fold=True, fuse=True, cache=True)


def sampled(network: Any, lr: torch.Tensor, **changes: Any) -> torch.Tensor:
    """Four guided steps; ``changes`` are arguments of the sampler, or another ``scheduler``."""
    generator = torch.Generator().manual_seed(5)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator).to(lr.device)

    arguments: dict[str, Any] = {
        "encoder_hidden_states": draw(len(lr), 5, 12),
        "pooled_projections": draw(len(lr), 10),
        "negative_encoder_hidden_states": draw(len(lr), 5, 12),
        "negative_pooled_projections": draw(len(lr), 10),
        "noise": draw(*lr.shape),
        "guidance": 3.0,
        "steps": 4,
    }
    if (scheduler := changes.pop("scheduler", None)) is not None:
        return sample_with_scheduler(network, lr, scheduler, **arguments, **changes)
    return sample_euler(network, lr, **arguments | changes)

"""What training does not compute at each step: latents and embedded captions of the shards, prompts on disk."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from dit4sr.errors import UserError
from dit4sr.prompts import TextEmbedding, TextEncoder


def stored_latents(batch: Mapping[str, Any], channels: int) -> tuple[Tensor, Tensor] | None:
    """The latents of HR and upsampled LR that a batch brings, both (B, C, h, w) float32; None where it has images.

    Raises:
        UserError: they are another autoencoder's.
    """
    if "hq_latent" not in batch:
        return None
    z, lr_latent = batch["hq_latent"], batch["lq_latent"]
    if z.shape[1] != channels:
        raise UserError(
            f"the latents of the shards have {z.shape[1]} channels, the backbone's autoencoder {channels}: "
            "prepare them again with this backbone."
        )
    return z, lr_latent


def embed_prompts(
    encoder: TextEncoder, prompts: list[str], stored: Sequence[Mapping[str, Tensor] | None] | None
) -> TextEmbedding:
    """Embed B prompts, by the encoder where the shards have not done so.

    Args:
        encoder: asked for what is missing alone, so that its weights are loaded only if something is.
        prompts: B texts.
        stored: for each prompt its tokens (M, W) and pooled (P,), or None; None for none at all.

    Raises:
        UserError: a stored embedding is another text encoder's.
    """
    found = list(stored or [None] * len(prompts))
    missing = [b for b, embedding in enumerate(found) if embedding is None]
    if len(missing) == len(found):
        return encoder.encode(prompts)
    rows: list[TextEmbedding | None] = [
        None if embedding is None else TextEmbedding(embedding["tokens"][None], embedding["pooled"][None])
        for embedding in found
    ]
    expected = ((1, encoder.tokens, encoder.width), (1, encoder.pooled_width))
    for row in rows:
        if row is not None and (shapes := (tuple(row.tokens.shape), tuple(row.pooled.shape))) != expected:
            raise UserError(
                f"the shards' embedded prompts have {shapes[0][1:]} tokens and {shapes[1][1:]} pooled, the "
                f"backbone's text encoder {expected[0][1:]} and {expected[1][1:]}: prepare them again, or set "
                "data.use_embedded_prompts=false."
            )
    device = next(row.tokens.device for row in rows if row is not None)
    if missing:
        encoded = encoder.encode([prompts[b] for b in missing])
        for n, b in enumerate(missing):
            rows[b] = encoded[n]
    return TextEmbedding.cat([row.to(device, torch.float32) for row in rows if row is not None])


def precompute_prompts(module: Any) -> None:
    """Embed every prompt that a run will need, where embeddings are kept on disk; its encoders leave memory then.

    Args:
        module: the LightningModule, attached to its trainer, whose datamodule tells its ``captions()`` and whose
            callbacks may tell their ``prompts(fixed_prompt)``.
    """
    precompute = getattr(module.text_encoder, "precompute", None)
    if precompute is None:
        return
    trainer = module.trainer

    def prompts() -> Iterator[str]:
        yield ""
        if module.fixed_prompt is not None:
            yield module.fixed_prompt
        else:
            yield from getattr(trainer.datamodule, "captions", tuple)()
        for callback in trainer.callbacks:
            if hasattr(callback, "prompts"):
                yield from callback.prompts(module.fixed_prompt)

    module.text_encoder.to(trainer.strategy.root_device)
    precompute(prompts())

"""What Stable Diffusion 3's text encoders give, put together (arXiv 2403.03206, section 4.2 and figure 2)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from dit4sr.prompts.text import TextEmbedding


def encode_sd3(
    prompts: list[str],
    *,
    clip_tokenizers: Sequence[Any],
    clips: Sequence[Any],
    t5_tokenizer: Any | None,
    t5: Any | None,
    clip_tokens: int,
    t5_tokens: int,
    width: int,
    device: torch.device | str | None = None,
) -> TextEmbedding:
    """Embed B prompts with the modules of a Stable Diffusion 3 pipeline.

    The CLIPs' second-to-last hidden states, side by side on the channels and zero-padded to W, are followed by
    T5's tokens (zeros where there is no T5); the pooled vector is the CLIPs' projected text embeddings. Padding
    is not masked, as in Stable Diffusion 3's training.

    Args:
        prompts: "" is the null prompt.
        clip_tokenizers, clips: of CLIP-L and OpenCLIP-G.
        t5_tokenizer, t5: both None to leave T5 out.
        clip_tokens, t5_tokens: tokens of a prompt, padding and special tokens included; M is their sum.
        width: W.
        device: where to compute; None: where the encoders are.

    Returns:
        tokens (B, clip_tokens + t5_tokens, W) and pooled (B, sum of the CLIPs' projections), on that device.
    """

    pairs = zip(clip_tokenizers, clips, strict=True)
    of_clips = [of_clip(clip, prompts, tokenizer, clip_tokens, device) for tokenizer, clip in pairs]
    last = None if t5 is None else of_t5(t5, prompts, t5_tokenizer, t5_tokens, device)
    return put_together(of_clips, last, t5_tokens, width)


@torch.no_grad()
def of_clip(
    clip: Any, prompts: list[str], tokenizer: Any, length: int, device: torch.device | str | None = None
) -> TextEmbedding:
    """What one CLIP gives: its second-to-last hidden states (B, length, …) and its projected text embeddings."""
    output = clip(_ids(tokenizer, prompts, length, device or clip.device), output_hidden_states=True)
    return TextEmbedding(output.hidden_states[-2], output.text_embeds)


@torch.no_grad()
def of_t5(t5: Any, prompts: list[str], tokenizer: Any, length: int, device: torch.device | str | None = None) -> Tensor:
    """T5's last hidden states, (B, length, W)."""
    last: Tensor = t5(_ids(tokenizer, prompts, length, device or t5.device))[0]
    return last


def put_together(of_clips: Sequence[TextEmbedding], last: Tensor | None, t5_tokens: int, width: int) -> TextEmbedding:
    """The CLIPs' side by side, zero-padded to W, then T5's (zeros where there are none); see :func:`encode_sd3`."""
    side_by_side = torch.cat([clip.tokens for clip in of_clips], dim=-1)
    side_by_side = F.pad(side_by_side, (0, width - side_by_side.shape[-1]))
    if last is None:
        last = side_by_side.new_zeros(len(side_by_side), t5_tokens, width)
    tokens = torch.cat([side_by_side, last.to(side_by_side.device)], dim=1)
    return TextEmbedding(tokens, torch.cat([clip.pooled for clip in of_clips], dim=-1))


def _ids(tokenizer: Any, prompts: list[str], length: int, device: torch.device | str) -> Tensor:
    batch = tokenizer(prompts, padding="max_length", max_length=length, truncation=True, return_tensors="pt")
    ids: Tensor = batch.input_ids.to(device)
    return ids

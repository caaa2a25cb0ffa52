"""Stable Diffusion 3's three text encoders (arXiv 2403.03206, section 4.2 and figure 2)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from dit4sr.errors import UserError
from dit4sr.prompts.text import TextEmbedding

CLIP_TOKENS = 77


@dataclass(eq=False)
class SD3TextEncoder:
    """CLIP-L and OpenCLIP-G side by side on the channels, zero-padded to T5's width, then T5's tokens.

    The CLIPs give their second-to-last hidden state; the pooled vector is their two projected text
    embeddings. Padding is not masked, as in Stable Diffusion 3's training.
    """

    clip_tokenizers: list[Any]
    clips: list[Any]
    t5_tokenizer: Any
    t5: Any
    tokens: int

    def __post_init__(self) -> None:
        self.width: int = self.t5.config.d_model
        self.pooled_width: int = sum(clip.config.projection_dim for clip in self.clips)
        for model in (*self.clips, self.t5):
            model.eval().requires_grad_(False)

    @classmethod
    def from_pretrained(cls, pretrained: str, tokens: int, width: int, pooled_width: int) -> SD3TextEncoder:
        """Load from a folder or hub id in diffusers' layout, in the dtype of the files.

        Raises:
            UserError: something is missing there, or its widths are not the ones given.
        """
        from transformers import AutoTokenizer, CLIPTextModelWithProjection, T5EncoderModel

        options: dict[str, Any] = {"dtype": "auto", "use_safetensors": True}
        try:
            encoder = cls(
                [AutoTokenizer.from_pretrained(pretrained, subfolder=f) for f in ("tokenizer", "tokenizer_2")],
                [
                    CLIPTextModelWithProjection.from_pretrained(pretrained, subfolder=f, **options)
                    for f in ("text_encoder", "text_encoder_2")
                ],
                AutoTokenizer.from_pretrained(pretrained, subfolder="tokenizer_3"),
                T5EncoderModel.from_pretrained(pretrained, subfolder="text_encoder_3", **options),
                tokens,
            )
        except (OSError, ValueError) as error:
            first = str(error).strip().splitlines()[0]
            raise UserError(
                f"no Stable Diffusion 3 text encoders in backbone.pretrained={pretrained}: {first}"
            ) from error
        if tokens <= CLIP_TOKENS or (encoder.width, encoder.pooled_width) != (width, pooled_width):
            raise UserError(
                f"the text encoders of {pretrained} give tokens of width {encoder.width}, a pooled vector of "
                f"{encoder.pooled_width} and more than {CLIP_TOKENS} tokens: set backbone.text_encoder so."
            )
        return encoder

    def to(self, device: torch.device | str) -> SD3TextEncoder:
        """Move the three encoders to a device."""
        for model in (*self.clips, self.t5):
            model.to(device)
        return self

    @torch.no_grad()
    def encode(self, prompts: list[str]) -> TextEmbedding:
        """Embed B prompts on the encoders' device: tokens (B, M, W), pooled (B, P)."""
        outputs = [
            clip(self._ids(tokenizer, prompts, CLIP_TOKENS), output_hidden_states=True)
            for tokenizer, clip in zip(self.clip_tokenizers, self.clips, strict=True)
        ]
        clip_tokens = torch.cat([output.hidden_states[-2] for output in outputs], dim=-1)
        t5_tokens = self.t5(self._ids(self.t5_tokenizer, prompts, self.tokens - CLIP_TOKENS))[0]
        clip_tokens = F.pad(clip_tokens, (0, self.width - clip_tokens.shape[-1])).to(t5_tokens.dtype)
        pooled = torch.cat([output.text_embeds for output in outputs], dim=-1).to(t5_tokens.dtype)
        return TextEmbedding(torch.cat([clip_tokens, t5_tokens], dim=1), pooled)

    def _ids(self, tokenizer: Any, prompts: list[str], length: int) -> Tensor:
        batch = tokenizer(prompts, padding="max_length", max_length=length, truncation=True, return_tensors="pt")
        return batch.input_ids.to(self.t5.device)

"""A pipeline's text encoders, as diffusers' pipelines offer them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from dit4sr.errors import UserError
from dit4sr.prompts import TextEmbedding
from dit4sr.restoration.components import HashingTextModel


class PromptEncoding:
    """The part of a pipeline that embeds prompts with its own text encoders and tokenizers."""

    transformer: Any
    text_encoder: Any
    text_encoder_2: Any
    text_encoder_3: Any
    tokenizer: Any
    tokenizer_2: Any
    tokenizer_3: Any
    _execution_device: torch.device

    def encode_prompt(
        self,
        prompt: Sequence[str],
        negative_prompt: Sequence[str] | None,
        *,
        device: torch.device | None = None,
        max_sequence_length: int = 77,
    ) -> tuple[Tensor, Tensor | None, Tensor, Tensor | None]:
        """Embed prompts, and negative prompts unless None.

        Args:
            prompt, negative_prompt: B of each, as they are: no suffix is added.
            device: where to; None for the pipeline's.
            max_sequence_length: tokens of T5, which follow the 77 of CLIP.

        Returns:
            In diffusers' order: ``prompt_embeds`` (B, M, W), ``negative_prompt_embeds``, ``pooled_prompt_embeds``
            (B, P) and ``negative_pooled_prompt_embeds``; the negative ones are None without a negative prompt.

        Raises:
            UserError: where the pipeline has no text encoder.
        """
        text = self._encode(list(prompt), device, max_sequence_length)
        if negative_prompt is None:
            return text.tokens, None, text.pooled, None
        negative = self._encode(list(negative_prompt), device, max_sequence_length)
        return text.tokens, negative.tokens, text.pooled, negative.pooled

    def _encode(self, prompts: list[str], device: torch.device | None, t5_tokens: int) -> TextEmbedding:
        device = device or self._execution_device
        if isinstance(self.text_encoder, HashingTextModel):
            return self.text_encoder.encode(prompts).to(device)
        if self.text_encoder is None or self.text_encoder_2 is None:
            raise UserError("this pipeline has no text encoder: pass prompt_embeds and pooled_prompt_embeds")
        from dit4sr.prompts.sd3_embedding import encode_sd3

        tokenizers = [self.tokenizer, self.tokenizer_2]
        return encode_sd3(
            prompts,
            clip_tokenizers=tokenizers,
            clips=[self.text_encoder, self.text_encoder_2],
            t5_tokenizer=self.tokenizer_3,
            t5=self.text_encoder_3,
            clip_tokens=min(77, *(tokenizer.model_max_length for tokenizer in tokenizers)),
            t5_tokens=t5_tokens,
            width=self.transformer.config.joint_attention_dim,
            device=device,
        ).to(device)

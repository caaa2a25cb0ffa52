"""From the prompts or embeddings that a pipeline is given to what sampling is conditioned on."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from dit4sr.errors import UserError
from dit4sr.prompts import TextEmbedding
from dit4sr.restoration.restoring import Conditions
from dit4sr.restoration.sampler_settings import SamplerSettings

Prompts = str | Sequence[str] | None
"""One for all images, or one an image."""


def conditions_of(
    count: int,
    prompts: tuple[Prompts, Prompts],
    embeds: tuple[Tensor | None, Tensor | None, Tensor | None, Tensor | None],
    settings: SamplerSettings,
    encode: Callable[[list[str]], TextEmbedding],
    device: torch.device,
) -> Conditions:
    """The conditions of ``count`` images, float32 on the device.

    Args:
        count: number of images.
        prompts: prompt (None is the null prompt) and negative prompt (None is that of the settings).
        embeds: in their place: prompt_embeds, pooled_prompt_embeds, and the negative two.
        settings: give the suffix and the guidance.
        encode: embeds B prompts.
        device: where to.

    Raises:
        UserError: for both prompts and embeddings, or numbers of them that do not fit the images.
    """
    prompt, negative_prompt = prompts
    tokens, pooled, negative_tokens, negative_pooled = embeds
    if tokens is not None or pooled is not None:
        if prompt is not None:
            raise UserError("give prompt or prompt_embeds, not both")
        text = _given("prompt_embeds and pooled_prompt_embeds", tokens, pooled, count, device)
    else:
        texts = [settings.positive(p) for p in _texts("prompt", "" if prompt is None else prompt, count)]
        text = _encoded(texts, encode, device)
    if settings.guidance == 1:
        return Conditions(text, None)
    if negative_tokens is not None or negative_pooled is not None:
        if negative_prompt is not None:
            raise UserError("give negative_prompt or negative_prompt_embeds, not both")
        name = "negative_prompt_embeds and negative_pooled_prompt_embeds"
        return Conditions(text, _given(name, negative_tokens, negative_pooled, count, device))
    negatives = settings.negative_prompt if negative_prompt is None else negative_prompt
    return Conditions(text, _encoded(_texts("negative_prompt", negatives, count), encode, device))


def _encoded(texts: list[str], encode: Callable[[list[str]], TextEmbedding], device: torch.device) -> TextEmbedding:
    """Each text once through the encoders, however many images share it."""
    distinct = sorted(set(texts))
    embedded = encode(distinct).to(device, torch.float32)
    index = torch.tensor([distinct.index(text) for text in texts], device=device)
    return TextEmbedding(embedded.tokens[index], embedded.pooled[index])


def _texts(name: str, texts: str | Sequence[str], count: int) -> list[str]:
    if isinstance(texts, str):
        return [texts] * count
    if len(texts) != count:
        raise UserError(f"{len(texts)} of {name} for {count} images: give one, or one an image")
    return list(texts)


def _given(name: str, tokens: Tensor | None, pooled: Tensor | None, count: int, device: torch.device) -> TextEmbedding:
    if tokens is None or pooled is None:
        raise UserError(f"{name} belong together: give both")
    if {len(tokens), len(pooled)} - {1, count}:
        raise UserError(f"{name} are of {len(tokens)} and {len(pooled)} prompts: give one, or one an image ({count})")
    both = (x.to(device, torch.float32).expand(count, *x.shape[1:]) for x in (tokens, pooled))
    return TextEmbedding(*both)

"""A whole Stable Diffusion 3 folder as diffusers writes it, tiny and random: the real layout, made offline.

Its sizes all differ from those of Stable Diffusion 3.5 Medium, so that a constant in the code shows: latents of
4 channels at ×4, other shift and scaling factors, tokens of width 48, a pooled vector of 20.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import torch
from tiny_sd3 import randomise

LETTERS = [chr(c) for c in range(97, 123)]
TEXT_WIDTH, POOLED_WIDTH, LATENT_CHANNELS, VAE_SCALE = 48, 20, 4, 4


def folder_fields(**changes: Any) -> dict[str, Any]:
    """The fields of the folder's transformer/config.json."""
    fields: dict[str, Any] = {
        "sample_size": 16,
        "patch_size": 2,
        "in_channels": LATENT_CHANNELS,
        "out_channels": LATENT_CHANNELS,
        "num_layers": 3,
        "attention_head_dim": 8,
        "num_attention_heads": 2,
        "joint_attention_dim": TEXT_WIDTH,
        "caption_projection_dim": 16,
        "pooled_projection_dim": POOLED_WIDTH,
        "pos_embed_max_size": 32,
        "dual_attention_layers": (0, 1),
        "qk_norm": "rms_norm",
    }
    return fields | changes


def write_tiny_sd3(
    folder: Path, *, seed: int = 0, dtype: torch.dtype = torch.float32, **transformer_fields: Any
) -> Path:
    """Write the folder: model_index.json, transformer, vae, three text encoders and tokenizers, scheduler.

    Args:
        folder: is made.
        seed: of all weights.
        dtype: of all weights.
        transformer_fields: in place of those of :func:`folder_fields`.

    Returns:
        ``folder``.
    """
    from diffusers import (
        AutoencoderKL,
        FlowMatchEulerDiscreteScheduler,
        SD3Transformer2DModel,
        StableDiffusion3Pipeline,
    )

    torch.manual_seed(seed)
    transformer = SD3Transformer2DModel(**folder_fields(**transformer_fields)).eval()
    randomise(transformer, seed)
    levels = 3
    vae = AutoencoderKL(
        in_channels=3,
        out_channels=3,
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        block_out_channels=(8, 8, 16),
        layers_per_block=1,
        latent_channels=transformer.config.in_channels,
        norm_num_groups=4,
        sample_size=64,
        scaling_factor=1.31,
        shift_factor=0.0712,
        use_quant_conv=False,
        use_post_quant_conv=False,
    )
    pooled = transformer.config.pooled_projection_dim
    clip_l, clip_g = (tiny_clip(16, pooled * 2 // 5), tiny_clip(24, pooled - pooled * 2 // 5))
    pipeline = StableDiffusion3Pipeline(
        transformer=transformer,
        vae=vae,
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        tokenizer=tiny_clip_tokenizer("<|endoftext|>"),
        tokenizer_2=tiny_clip_tokenizer("!"),  # padded by "!", as the real second one
        tokenizer_3=tiny_t5_tokenizer(),
        text_encoder=clip_l,
        text_encoder_2=clip_g,
        text_encoder_3=tiny_t5(transformer.config.joint_attention_dim),
    )
    pipeline.to(dtype=dtype)
    pipeline.save_pretrained(folder)
    return folder


VOCABULARY = ["<|startoftext|>", "<|endoftext|>", "!", "!</w>", *LETTERS, *(f"{letter}</w>" for letter in LETTERS)]
PIECES = ["<pad>", "</s>", "<unk>", "▁", *LETTERS]


def tiny_clip_tokenizer(padding: str) -> Any:
    """CLIP's tokenizer over single letters."""
    from transformers import CLIPTokenizer

    with tempfile.TemporaryDirectory() as name:
        vocabulary, merges = Path(name) / "vocab.json", Path(name) / "merges.txt"
        vocabulary.write_text(json.dumps({token: n for n, token in enumerate(VOCABULARY)}))
        merges.write_text("#version: 0.2\n")
        return CLIPTokenizer(str(vocabulary), str(merges), model_max_length=77, pad_token=padding)


def tiny_clip(width: int, projection: int) -> Any:
    """A CLIP text model of that width and pooled width."""
    from transformers import CLIPTextConfig, CLIPTextModelWithProjection

    return CLIPTextModelWithProjection(
        CLIPTextConfig(
            vocab_size=len(VOCABULARY),
            hidden_size=width,
            intermediate_size=32,
            projection_dim=projection,
            num_hidden_layers=3,
            num_attention_heads=2,
            bos_token_id=0,
            eos_token_id=1,
            pad_token_id=1,
        )
    ).eval()


def tiny_t5_tokenizer() -> Any:
    """T5's tokenizer over single letters."""
    from tokenizers import Tokenizer, models, processors
    from transformers import T5TokenizerFast

    unigram = Tokenizer(models.Unigram([(piece, -float(n)) for n, piece in enumerate(PIECES)], unk_id=2))
    unigram.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    return T5TokenizerFast(tokenizer_object=unigram, extra_ids=0, model_max_length=512)


def tiny_t5(width: int) -> Any:
    """A T5 encoder of that width."""
    from transformers import T5Config, T5EncoderModel

    return T5EncoderModel(
        T5Config(vocab_size=len(PIECES), d_model=width, d_kv=8, d_ff=32, num_layers=2, num_heads=2)
    ).eval()

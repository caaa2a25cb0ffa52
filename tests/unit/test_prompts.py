"""Text encoders: the hashing one by its definition, Stable Diffusion 3's against diffusers' own pipeline."""

import json

import pytest
import torch

from dit4sr.errors import UserError
from dit4sr.prompts import HashingTextEncoder, build_text_encoder

HASHING = {"name": "hashing", "tokens": 8, "width": 64, "pooled_width": 32}


def test_shapes_and_the_null_prompt():
    encoder = build_text_encoder(HASHING, None)
    assert (encoder.tokens, encoder.width, encoder.pooled_width) == (8, 64, 32)
    embedding = encoder.encode(["", "A red cup", " ... "])
    assert embedding.tokens.shape == (3, 8, 64)
    assert embedding.pooled.shape == (3, 32)
    assert embedding.tokens.dtype == embedding.pooled.dtype == torch.float32
    padding = embedding.tokens[0, 0]
    assert torch.equal(embedding.tokens[0], padding.repeat(8, 1))
    assert torch.equal(embedding.pooled[0], torch.zeros(32))
    assert torch.equal(embedding.tokens[2], embedding.tokens[0])
    assert torch.equal(embedding.tokens[1, 3:], padding.repeat(5, 1))
    assert not torch.isclose(embedding.tokens[1, :3], padding).all(dim=-1).any()


def test_words_count_and_their_case_and_punctuation_do_not():
    encoder = HashingTextEncoder(8, 64, 32)
    a, b, c, d = encoder.encode(["a red cup", "A red, CUP!", "a cup red", "a blue cup"]).tokens
    assert torch.equal(a, b)
    assert torch.equal(a[0], c[0])
    assert not torch.equal(a[1:3], c[1:3])
    assert torch.equal(a[[0, 2]], d[[0, 2]])
    assert not torch.equal(a[1], d[1])


def test_the_position_is_added():
    encoder = HashingTextEncoder(4, 512, 8)
    tokens = encoder.encode(["cat dog", "dog cat"]).tokens
    # word + position, so the sums over both orders agree
    torch.testing.assert_close(tokens[0, 0] + tokens[0, 1], tokens[1, 0] + tokens[1, 1])
    assert not torch.equal(tokens[0, 0], tokens[1, 1])


def test_long_prompts_are_cut():
    encoder = HashingTextEncoder(4, 16, 16)
    long, short = (encoder.encode([prompt]) for prompt in ("one two three four five", "one two three four"))
    assert torch.equal(long.tokens, short.tokens)
    assert torch.equal(long.pooled, short.pooled)


def test_the_vectors_are_standard_normal_and_fixed():
    encoder = HashingTextEncoder(1, 4096, 4096)
    tokens, pooled = (getattr(encoder.encode(["cat", "dog"]), name) for name in ("tokens", "pooled"))
    assert abs(pooled.mean()) < 0.05
    assert abs(pooled.std() - 1) < 0.05
    assert abs(torch.corrcoef(pooled)[0, 1]) < 0.07
    assert abs(tokens.std() - 1.25**0.5) < 0.05  # a word's variance 1, and a quarter of a position
    # Trained networks depend on these numbers: they may never change.
    torch.testing.assert_close(
        pooled[0, :4], torch.tensor([0.240074, -0.591482, -1.207202, -1.048810]), atol=1e-6, rtol=0
    )


def test_bad_configurations():
    with pytest.raises(UserError, match="choose hashing or sd3"):
        build_text_encoder({**HASHING, "name": "bert"}, None)
    with pytest.raises(UserError, match=r"set backbone\.pretrained to a folder with text_encoder"):
        build_text_encoder({**HASHING, "name": "sd3"}, None)


@pytest.fixture(scope="module")
def sd3_folder(tmp_path_factory):
    """The text side of a Stable Diffusion 3 folder: tiny random encoders, tokenizers made on the spot."""
    from tokenizers import Tokenizer, models
    from transformers import (
        CLIPTextConfig,
        CLIPTextModelWithProjection,
        CLIPTokenizer,
        T5Config,
        T5EncoderModel,
        T5TokenizerFast,
    )

    folder = tmp_path_factory.mktemp("sd3")
    torch.manual_seed(0)
    letters = [chr(c) for c in range(97, 123)]
    vocabulary = ["<|startoftext|>", "<|endoftext|>", *letters, *(f"{letter}</w>" for letter in letters)]
    files = {
        "vocab.json": json.dumps({token: n for n, token in enumerate(vocabulary)}),
        "merges.txt": "#version: 0.2\n",
    }
    for name, text in files.items():
        (folder / name).write_text(text)
    for number, (width, projection) in enumerate([(16, 8), (24, 12)]):
        suffix = ["", "_2"][number]
        tokenizer = CLIPTokenizer(str(folder / "vocab.json"), str(folder / "merges.txt"), model_max_length=77)
        tokenizer.save_pretrained(folder / f"tokenizer{suffix}")
        config = CLIPTextConfig(
            vocab_size=len(vocabulary),
            hidden_size=width,
            intermediate_size=32,
            projection_dim=projection,
            num_hidden_layers=3,
            num_attention_heads=2,
            bos_token_id=0,
            eos_token_id=1,
            pad_token_id=1,
        )
        CLIPTextModelWithProjection(config).save_pretrained(folder / f"text_encoder{suffix}")
    pieces = ["<pad>", "</s>", "<unk>", "▁", *letters]
    unigram = Tokenizer(models.Unigram([(piece, -float(n)) for n, piece in enumerate(pieces)], unk_id=2))
    T5TokenizerFast(tokenizer_object=unigram, extra_ids=0).save_pretrained(folder / "tokenizer_3")
    T5EncoderModel(
        T5Config(vocab_size=len(pieces), d_model=48, d_kv=8, d_ff=32, num_layers=2, num_heads=2)
    ).save_pretrained(folder / "text_encoder_3")
    return folder


def test_sd3_equals_diffusers(sd3_folder):
    from diffusers import FlowMatchEulerDiscreteScheduler, StableDiffusion3Pipeline

    encoder = build_text_encoder({"name": "sd3", "tokens": 77 + 20, "width": 48, "pooled_width": 20}, str(sd3_folder))
    prompts = ["a red cup", "", "two cats on a very long sofa " * 20]
    got = encoder.encode(prompts)
    pipeline = StableDiffusion3Pipeline(
        transformer=None,
        vae=None,
        scheduler=FlowMatchEulerDiscreteScheduler(),
        tokenizer=encoder.clip_tokenizers[0],
        tokenizer_2=encoder.clip_tokenizers[1],
        tokenizer_3=encoder.t5_tokenizer,
        text_encoder=encoder.clips[0],
        text_encoder_2=encoder.clips[1],
        text_encoder_3=encoder.t5,
    )
    with torch.no_grad():
        tokens, _, pooled, _ = pipeline.encode_prompt(
            prompts, None, None, do_classifier_free_guidance=False, max_sequence_length=20, device="cpu"
        )
    assert got.tokens.shape == (3, 97, 48)
    assert got.pooled.shape == (3, 20)
    torch.testing.assert_close(got.tokens, tokens)
    torch.testing.assert_close(got.pooled, pooled)
    assert not torch.allclose(got.tokens[0], got.tokens[1])


def test_sd3_refuses_other_widths_and_incomplete_folders(sd3_folder, tmp_path):
    sizes = {"name": "sd3", "tokens": 154, "width": 4096, "pooled_width": 2048}
    with pytest.raises(UserError, match="width 48, a pooled vector of 20"):
        build_text_encoder(sizes, str(sd3_folder))
    with pytest.raises(UserError, match=r"no Stable Diffusion 3 text encoders in backbone\.pretrained"):
        build_text_encoder(sizes, str(tmp_path))

"""Text encoders: the hashing one by its definition, Stable Diffusion 3's against diffusers' own pipeline."""

import shutil
import weakref

import pytest
import torch
from safetensors.torch import load_file, save, save_file
from tiny_sd3_folder import write_tiny_sd3

from dit4sr.errors import UserError
from dit4sr.prompts import (
    HashingTextEncoder,
    PromptSettings,
    build_text_encoder,
    embedding_from_bytes,
    embedding_to_bytes,
)

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
    return write_tiny_sd3(tmp_path_factory.mktemp("models") / "sd3")


# Widths that are nobody's: a folder's own count.
SD3 = {"name": "sd3", "tokens": 97, "width": 4096, "pooled_width": 2048}
PROMPTS = ["a red cup", "", "two cats on a very long sofa " * 20]


def diffusers_embedding(folder, tokens, prompts=PROMPTS, negative="blurry, messy", **components):
    from diffusers import StableDiffusion3Pipeline

    pipeline = StableDiffusion3Pipeline.from_pretrained(folder, **components)
    with torch.no_grad():
        return pipeline.encode_prompt(
            prompts,
            None,
            None,
            device="cpu",
            max_sequence_length=tokens - 77,
            negative_prompt=[negative] * len(prompts),
        )


def relative_error(got, wanted):
    assert got.shape == wanted.shape
    return float((got - wanted).norm() / wanted.norm())


@pytest.mark.parametrize("tokens", [154, 97, 79])
def test_sd3_equals_diffusers(sd3_folder, tokens):
    encoder = build_text_encoder({**SD3, "tokens": tokens}, str(sd3_folder))
    assert (encoder.tokens, encoder.width, encoder.pooled_width) == (tokens, 48, 20)
    assert not encoder.loaded  # until the first prompt
    positive, negative = encoder.encode(PROMPTS), encoder.encode(["blurry, messy"] * 3)
    wanted = diffusers_embedding(sd3_folder, tokens)
    for got, expected in zip((positive.tokens, negative.tokens, positive.pooled, negative.pooled), wanted, strict=True):
        assert relative_error(got, expected) < 1e-6
    assert not torch.allclose(positive.tokens[0], positive.tokens[1])


def test_sd3_without_t5_has_zeros_in_its_place(sd3_folder, tmp_path, capsys):
    folder = tmp_path / "sd3"
    shutil.copytree(sd3_folder, folder, ignore=shutil.ignore_patterns("*_3", "vae", "*.safetensors.bak"))
    encoder = build_text_encoder(SD3, str(folder))
    assert "T5's tokens are zeros" in capsys.readouterr().err
    got = encoder.encode(PROMPTS)
    wanted = diffusers_embedding(sd3_folder, 97, text_encoder_3=None, tokenizer_3=None)
    assert torch.equal(got.tokens[:, 77:], torch.zeros(3, 20, 48))
    assert relative_error(got.tokens, wanted[0]) < 1e-6
    assert relative_error(got.pooled, wanted[2]) < 1e-6


def test_sd3_in_another_dtype_and_dropped_from_memory(sd3_folder):
    encoder = build_text_encoder(SD3, str(sd3_folder), PromptSettings(dtype="bfloat16"))
    whole = build_text_encoder(SD3, str(sd3_folder)).encode(PROMPTS)
    half = encoder.encode(PROMPTS)
    assert half.tokens.dtype == half.pooled.dtype == torch.bfloat16
    assert 0 < relative_error(half.tokens.float(), whole.tokens) < 2e-2
    assert encoder.loaded
    weights = weakref.ref(next(iter(encoder._loaded.values())))
    encoder.release()
    assert weights() is None and not encoder.loaded
    assert torch.equal(encoder.encode(PROMPTS).tokens, half.tokens)  # loaded again
    encoder.to(dtype=torch.float32)
    assert encoder.encode(["a"]).tokens.dtype == torch.float32
    each_time = build_text_encoder(SD3, str(sd3_folder), PromptSettings(release=True))
    assert torch.equal(each_time.encode(PROMPTS).tokens, whole.tokens)
    assert not each_time.loaded


def test_sd3_refuses_incomplete_and_damaged_folders(sd3_folder, tmp_path):
    def copy(name):
        folder = tmp_path / name
        shutil.copytree(sd3_folder, folder, ignore=shutil.ignore_patterns("vae", "transformer"))
        return folder

    def message(folder, config=SD3):
        with pytest.raises(UserError) as caught:
            build_text_encoder(config, str(folder)).encode(["a"])
        assert "\n" not in str(caught.value)
        return str(caught.value)

    assert "there is no such folder: download it" in message(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    assert "has no text_encoder, text_encoder_2, tokenizer, tokenizer_2" in message(tmp_path / "empty")
    folder = copy("no tokenizer")
    shutil.rmtree(folder / "tokenizer_3")
    assert "has no tokenizer_3" in message(folder)
    folder = copy("pickled")
    weights = folder / "text_encoder_2" / "model.safetensors"
    weights.rename(weights.with_name("pytorch_model.bin"))
    assert "text_encoder_2 holds no *.safetensors" in message(folder)
    folder = copy("cut off")
    weights = folder / "text_encoder_3" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    assert "text_encoder_3 cannot be loaded" in message(folder)
    folder = copy("lacks a weight")
    weights = folder / "text_encoder" / "model.safetensors"
    tensors = load_file(weights)
    tensors.pop("text_projection.weight")
    save_file(tensors, weights, {"format": "pt"})
    assert "lacks the weights text_projection.weight" in message(folder)
    folder = copy("no config")
    (folder / "text_encoder" / "config.json").write_text("{")
    assert "config.json cannot be read" in message(folder)
    assert "the CLIPs take 77 and T5 the rest" in message(sd3_folder, {**SD3, "tokens": 77})
    assert "hf download" in message("nobody/nothing-of-that-name")


def test_settings():
    assert PromptSettings.from_config({"name": "captions", "fixed": None, "encoding": "live"}).fixed is None
    for null in (None, {"describes": "hq"}, {"encoding": None, "cache": "c"}, {"encoding": "null"}):
        settings = PromptSettings.from_config(null)
        assert (settings.encoding, settings.fixed) == ("null", "")
    for wrong, says in [
        ({"encoding": "alive"}, "choose one of live, cached, null"),
        ({"describes": "sr", "encoding": "live"}, "choose one of hq, lq"),
        ({"dtype": "int8"}, "choose one of auto"),
        ({"encodings": "live"}, "prompt has no encodings"),
        ({"fixed": "a cup", "encoding": "null"}, "leave one of them out"),
    ]:
        with pytest.raises(UserError, match=says):
            PromptSettings.from_config(wrong)


def test_an_embedding_goes_through_bytes_and_damage_is_seen():
    embedding = HashingTextEncoder(4, 6, 8).encode(["a red cup"])
    for dtype, stored in ((torch.bfloat16, torch.bfloat16), (None, torch.float32)):
        data = embedding_to_bytes(embedding, dtype, "a red cup")
        back = embedding_from_bytes(data)
        assert back.tokens.shape == (1, 4, 6) and back.pooled.shape == (1, 8)
        assert back.tokens.dtype == back.pooled.dtype == stored
        assert torch.equal(back.tokens, embedding.tokens.to(stored))
        assert torch.equal(back.pooled, embedding.pooled.to(stored))
    flipped = bytearray(data)
    flipped[-3] ^= 1
    for damaged in (bytes(flipped), data[:-1], b"", b"not a tensor", save({"tokens": torch.zeros(2)})):
        with pytest.raises(ValueError, match="not .*embedded prompt"):
            embedding_from_bytes(damaged)

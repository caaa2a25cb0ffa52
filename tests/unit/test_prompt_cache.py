"""Embedded prompts on disk: the same as live ones, found by content, made again when damaged, shared by processes."""

import multiprocessing
import shutil
import weakref

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_sd3_folder import write_tiny_sd3

from dit4sr.errors import UserError
from dit4sr.prompts import HashingTextEncoder, PromptSettings, build_text_encoder
from dit4sr.prompts import cache as cache_module
from dit4sr.prompts.cache import CachedTextEncoder

SD3 = {"name": "sd3", "tokens": 97, "width": 48, "pooled_width": 20}
HASHING = {"name": "hashing", "tokens": 8, "width": 64, "pooled_width": 32}
PROMPTS = ["a red cup", "", "a blue cup", "a red cup"]


@pytest.fixture(scope="module")
def sd3_folder(tmp_path_factory):
    return write_tiny_sd3(tmp_path_factory.mktemp("models") / "sd3", dtype=torch.bfloat16)


def cached(config, folder, cache, **settings):
    prompt = PromptSettings(**{"encoding": "cached", "release": True, "cache": cache, **settings})
    encoder = build_text_encoder(config, str(folder), prompt)
    assert isinstance(encoder, CachedTextEncoder)
    return encoder


def files(cache):
    return sorted(path for path in cache.rglob("*.safetensors"))


def test_cached_equals_live_and_loads_the_encoders_for_new_prompts_alone(sd3_folder, tmp_path):
    live = build_text_encoder(SD3, str(sd3_folder)).encode(PROMPTS)
    first = cached(SD3, sd3_folder, tmp_path)
    assert (first.tokens, first.width, first.pooled_width) == (97, 48, 20)
    got = first.encode(PROMPTS)
    assert got.tokens.dtype == torch.bfloat16
    assert torch.equal(got.tokens, live.tokens) and torch.equal(got.pooled, live.pooled)
    assert not first.encoder.loaded  # dropped again
    assert len(files(tmp_path)) == 3

    again = cached(SD3, sd3_folder, tmp_path)
    from_disk = again.encode([*PROMPTS, ""])
    assert torch.equal(from_disk.tokens[:4], live.tokens) and torch.equal(from_disk.pooled[:4], live.pooled)
    loads = []
    again.encoder.load = lambda: loads.append(1) or pytest.fail("the encoders are loaded without need")
    assert torch.equal(again.encode([""]).tokens, live.tokens[1:2])
    kept = cached(SD3, sd3_folder, tmp_path, release=False)
    kept.encode(["something new"])
    assert kept.encoder.loaded
    weights = weakref.ref(next(iter(kept.encoder._loaded.values())))
    kept.release()
    assert weights() is None


def test_the_file_is_plain_safetensors_in_the_encoders_dtype(sd3_folder, tmp_path):
    encoder = cached(SD3, sd3_folder, tmp_path)
    embedding = encoder.encode(["a red cup"])
    tensors = load_file(encoder.path("a red cup"))
    assert {name: tuple(t.shape) for name, t in tensors.items()} == {"tokens": (97, 48), "pooled": (20,)}
    assert tensors["tokens"].dtype == torch.bfloat16
    assert torch.equal(tensors["tokens"], embedding.tokens[0])


def test_other_weights_tokenizers_lengths_and_dtypes_are_other_entries(sd3_folder, tmp_path):
    cache = tmp_path / "cache"
    entries = {"first": cached(SD3, sd3_folder, cache).folder}
    copy = tmp_path / "elsewhere"
    shutil.copytree(sd3_folder, copy, ignore=shutil.ignore_patterns("vae", "transformer"))
    assert cached(SD3, copy, cache).folder == entries["first"]  # content, not place
    entries["length"] = cached({**SD3, "tokens": 98}, copy, cache).folder
    entries["dtype"] = cached(SD3, copy, cache, dtype="float32").folder
    weights = copy / "text_encoder_2" / "model.safetensors"
    tensors = load_file(weights)
    name = sorted(tensors)[len(tensors) // 2]
    tensors[name].view(-1)[0] += 1
    save_file(tensors, weights, {"format": "pt"})
    entries["one weight"] = cached(SD3, copy, cache).folder
    tokenizer = copy / "tokenizer" / "tokenizer.json"
    tokenizer.write_text(tokenizer.read_text().replace('"lowercase"', '"uppercase"') + " ")
    entries["tokenizer"] = cached(SD3, copy, cache).folder
    assert len(set(entries.values())) == len(entries), entries


@pytest.mark.parametrize("damage", [lambda data: data[:-7], lambda data: b"", lambda data: data[:-4] + b"abcd"])
def test_a_damaged_file_is_made_again(damage, tmp_path, capsys):
    encoder = cached(HASHING, None, tmp_path)
    wanted = encoder.encode(["a red cup"])
    path = encoder.path("a red cup")
    whole = path.read_bytes()
    path.write_bytes(damage(whole))
    got = cached(HASHING, None, tmp_path).encode(["a red cup"])
    assert torch.equal(got.tokens, wanted.tokens) and torch.equal(got.pooled, wanted.pooled)
    assert f"warning: {path} cannot be used" in capsys.readouterr().err
    assert path.read_bytes() == whole
    cached(HASHING, None, tmp_path).encode(["a red cup"])
    assert not capsys.readouterr().err


def test_an_embedding_of_another_shape_is_not_used(tmp_path, capsys):
    small, encoder = cached({**HASHING, "tokens": 4}, None, tmp_path), cached(HASHING, None, tmp_path)
    small.encode(["a"])
    encoder.path("a").parent.mkdir(parents=True)
    shutil.copy(small.path("a"), encoder.path("a"))
    assert encoder.encode(["a"]).tokens.shape == (1, 8, 64)
    assert "its shapes are ((1, 4, 64), (1, 32))" in capsys.readouterr().err


def _encode(cache, start, queue):
    start.wait()
    encoder = CachedTextEncoder(HashingTextEncoder(8, 64, 32), cache, release=True)
    queue.put(encoder.encode([f"prompt {n % 40}" for n in range(80)]).tokens.double().sum().item())


def test_processes_share_the_folder(tmp_path):
    context = multiprocessing.get_context("fork")
    start, queue = context.Event(), context.Queue()
    processes = [context.Process(target=_encode, args=(tmp_path, start, queue)) for _ in range(3)]
    for process in processes:
        process.start()
    start.set()
    sums = [queue.get(timeout=600) for _ in processes]
    for process in processes:
        process.join()
    wanted = HashingTextEncoder(8, 64, 32).encode([f"prompt {n % 40}" for n in range(80)]).tokens.double().sum().item()
    assert sums == [wanted] * 3
    assert len(files(tmp_path)) == 40
    assert not [path for path in tmp_path.rglob(".*")]  # no temporary file is left


def test_precomputing_writes_what_is_missing_with_one_load(sd3_folder, tmp_path, monkeypatch):
    monkeypatch.setattr(cache_module, "BATCH", 2)
    encoder = cached(SD3, sd3_folder, tmp_path)
    encoder.encode(["b"])
    loads = []
    load = encoder.encoder._model
    monkeypatch.setattr(encoder.encoder, "_model", lambda *arguments: loads.append(1) or load(*arguments))
    assert encoder.precompute(iter(["a", "b", "a", "c", "", "c"])) == 3
    assert len(loads) == 3  # each of the three encoders once
    assert not encoder.encoder.loaded and len(files(tmp_path)) == 4
    assert encoder.precompute(["a", ""]) == 0
    encoder.encode(["a", "b", "c", ""])
    assert len(loads) == 3


def test_what_is_remembered_is_bounded_and_can_be_trained_beside(tmp_path, monkeypatch):
    encoder = cached(HASHING, None, tmp_path)
    size = 4 * (8 * 64 + 32)
    monkeypatch.setattr(cache_module, "REMEMBERED", 3 * size)
    with torch.inference_mode():  # as validation is; training goes on with what it leaves behind
        encoder.encode([f"prompt {n}" for n in range(5)])
    assert list(encoder._remembered) == ["prompt 2", "prompt 3", "prompt 4"]
    assert encoder._bytes == 3 * size
    weight = torch.ones(64, requires_grad=True)
    (encoder.encode(["prompt 4"]).tokens * weight).sum().backward()
    assert weight.grad is not None


def test_a_folder_that_cannot_be_written_is_one_line(tmp_path):
    (tmp_path / "file").write_text("in the way")
    encoder = cached(HASHING, None, tmp_path / "file" / "cache")
    with pytest.raises(UserError, match=r"prompt\.cache=.* cannot be written .* prompt\.encoding=live"):
        encoder.encode(["a"])


def test_the_null_mode_needs_the_encoders_once(sd3_folder, tmp_path):
    settings = PromptSettings.from_config({"encoding": "null", "release": True, "cache": tmp_path})
    encoder = build_text_encoder(SD3, str(sd3_folder), settings)
    null = encoder.encode([settings.fixed] * 3)
    assert not encoder.encoder.loaded and len(files(tmp_path)) == 1
    assert torch.equal(null.tokens[2], build_text_encoder(SD3, str(sd3_folder)).encode([""]).tokens[0])
    again = build_text_encoder(SD3, str(sd3_folder), settings)
    again.encode([""])
    assert not again.encoder.loaded
    assert isinstance(build_text_encoder(HASHING, None, settings), HashingTextEncoder)  # no weights, no disk


def test_surrogates_and_very_long_prompts_have_files(tmp_path):
    encoder = cached(HASHING, None, tmp_path)
    prompts = ["a \udce9 b", "ein Schloß 城", "word " * 5000]
    assert torch.equal(encoder.encode(prompts).tokens, encoder.encoder.encode(prompts).tokens)
    assert len(files(tmp_path)) == 3

"""Where prompts are embedded: encoders one by one, gone before the network comes, and the same embeddings."""

from __future__ import annotations

import gc
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from tiny_checkpoint import compose_verb, load, picture, save, write_checkpoint
from tiny_sd3_folder import write_tiny_sd3

from dit4sr.errors import UserError
from dit4sr.models.build import build_network
from dit4sr.models.checkpoint import TrainedModel
from dit4sr.prompts import HashingTextEncoder, PromptSettings
from dit4sr.prompts.ahead import LATER, EncodedAhead, best_place, placed, roomiest
from dit4sr.prompts.cache import CachedTextEncoder
from dit4sr.prompts.sd3 import SD3TextEncoder
from dit4sr.prompts.weight_bytes import loaded_bytes
from dit4sr.restoration.restorer import Restorer
from dit4sr.restoration.run import run

CPU = torch.device("cpu")
PROMPTS = ["a red cup", "", "two cats"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_sd3(tmp_path_factory.mktemp("sd3"))


class Resident:
    """The encoders that are in memory: which were when another one, or the network, came."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.alive: dict[str, weakref.ref[Any]] = {}
        self.events: list[tuple[str, list[str]]] = []
        load_model = SD3TextEncoder._model

        def noted(encoder: SD3TextEncoder, kind: Any, part: str) -> Any:
            self.note(part)
            model = load_model(encoder, kind, part)
            self.alive[part] = weakref.ref(model)
            return model

        monkeypatch.setattr(SD3TextEncoder, "_model", noted)

    def note(self, what: str) -> None:
        gc.collect()
        self.events.append((what, [part for part, model in self.alive.items() if model() is not None]))


def trained_on(folder: Path, resident: Resident | None = None) -> TrainedModel:
    """A network on the folder's base, which notes who is in memory when it is moved."""
    overrides = [
        f"backbone.pretrained={folder}",
        "backbone.text_encoder.tokens=90",
        "backbone.tile={size: 16, overlap: 4}",
    ]
    config: Any = OmegaConf.to_container(compose_verb("restore", "backbone=sd35_medium", *overrides), resolve=True)
    network = build_network(config["model"], config["backbone"], seed=0, trainable_dtype=None).eval()
    if resident is not None:
        move = network.to

        def noted(*args: Any, **kwargs: Any) -> Any:
            resident.note("network")
            return move(*args, **kwargs)

        network.to = noted  # type: ignore[method-assign]
    return TrainedModel(network, config, 0, folder, None)


SAMPLER = {**OmegaConf.to_container(compose_verb("restore", "backbone=sd35_medium").sampler), "steps": 1}  # type: ignore[dict-item]


@pytest.mark.parametrize("cached", [False, True])
def test_encoders_come_one_by_one_and_are_gone_when_the_network_comes(
    cached: bool, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prompt = PromptSettings(encoding="cached", release=True, cache=tmp_path) if cached else PromptSettings()
    lq = picture(16, 20, seed=1)
    expected = Restorer.from_trained(trained_on(folder), SAMPLER, CPU).restore(lq, "a red cup", seed=0)
    resident = Resident(monkeypatch)
    restorer = Restorer.from_trained(trained_on(folder, resident), SAMPLER, CPU, prompt, "offload", PROMPTS)
    assert resident.events == [("text_encoder", []), ("text_encoder_2", []), ("text_encoder_3", []), ("network", [])]
    np.testing.assert_allclose(restorer.restore(lq, "a red cup", seed=0).astype(int), expected, atol=1)
    assert len(resident.events) == 4, "all that was asked for was known"
    restorer.restore(lq, "a blue dog", seed=0)
    assert len(resident.events) == 7, "what was not known is embedded then"
    assert isinstance(restorer.text_encoder, EncodedAhead) and restorer.text_encoder.encoder.device == CPU


def test_with_the_network_encoders_stay_as_they_did(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    resident = Resident(monkeypatch)
    restorer = Restorer.from_trained(trained_on(folder, resident), SAMPLER, CPU, None, "auto", PROMPTS)
    assert resident.events == [("network", [])], "loaded at the first prompt"
    restorer.restore(picture(16, 16, seed=1), "a red cup", seed=0)
    assert resident.events[-1] == ("text_encoder_3", ["text_encoder", "text_encoder_2"])
    assert isinstance(restorer.text_encoder, SD3TextEncoder) and restorer.text_encoder.loaded


@torch.no_grad()
def test_one_by_one_gives_the_same_embeddings(folder: Path) -> None:
    plain = SD3TextEncoder(folder, 90)
    ahead = EncodedAhead(SD3TextEncoder(folder, 90))
    many = [*PROMPTS, *(f"photo {n}" for n in range(40))]  # more than go through an encoder together
    ahead.prepare(many, CPU)
    for some in (PROMPTS, ["photo 39", "a red cup"]):
        ours, theirs = ahead.encode(some), plain.encode(some)
        torch.testing.assert_close(ours.tokens, theirs.tokens, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(ours.pooled, theirs.pooled, rtol=1e-5, atol=1e-5)
    assert ahead.identity() == plain.identity()
    assert not ahead.encode(["photo 0"]).tokens.is_inference()
    without_t5 = SD3TextEncoder(folder, 90)
    without_t5.has_t5, without_t5.in_turn = False, True
    assert not without_t5.encode(["a"]).tokens[:, 77:].any()


def test_what_is_asked_of_an_encoder_is_asked_of_one_ahead() -> None:
    plain, ahead = HashingTextEncoder(4, 8, 6), EncodedAhead(HashingTextEncoder(4, 8, 6))
    ahead.prepare(["a cat"], CPU)
    assert torch.equal(ahead.encode(["a cat", "a dog"]).tokens, plain.encode(["a cat", "a dog"]).tokens)
    assert ahead.to("cpu").encode([""]).tokens.device == CPU
    assert (ahead.tokens, ahead.width, ahead.pooled_width) == (4, 8, 6)
    ahead.release()


def test_a_pipeline_takes_the_encoder_behind_its_embeddings() -> None:
    from diffusers import FlowMatchEulerDiscreteScheduler
    from tiny_sd3 import tiny_network

    from dit4sr.autoencoders import BlockDCT
    from dit4sr.restoration.pipeline import DiT4SRPipeline
    from dit4sr.restoration.restorer import TileSettings
    from dit4sr.restoration.sampler_settings import SamplerSettings

    network, encoder = tiny_network(in_channels=16, out_channels=16), EncodedAhead(HashingTextEncoder(5, 12, 10))
    settings = SamplerSettings.from_config(SAMPLER)
    restorer = Restorer(network, BlockDCT(), encoder, settings, TileSettings(8, 2), CPU)
    pipe = DiT4SRPipeline.from_restorer(restorer)
    assert isinstance(pipe.scheduler, FlowMatchEulerDiscreteScheduler) and pipe.text_encoder.config.width == 12


def test_places(folder: Path, tmp_path: Path) -> None:
    encoder = SD3TextEncoder(folder, 90)
    assert best_place(encoder, CPU, 10**15) == "network"
    assert placed(encoder, "cpu", CPU, [], 0) is encoder and placed(encoder, "auto", CPU, [], 0) is encoder
    cached = CachedTextEncoder(SD3TextEncoder(folder, 90), tmp_path, release=True)
    assert isinstance(placed(cached, "offload", CPU, ["a"], 0), EncodedAhead)
    assert cached.path("a").is_file() and not cached.encoder.loaded  # type: ignore[attr-defined]


def test_auto_takes_the_roomiest_place_that_there_is() -> None:
    gb = 10**9
    encoders, network = [gb // 4, 14 * gb // 10, 115 * gb // 10], 57 * gb // 10
    free = {140: "network", 24: "offload", 13: "offload", 12: "cpu", 8: "cpu"}
    assert {size: roomiest(encoders, network, size * gb) for size in free} == free
    assert roomiest([], gb, 2 * gb) == "network" and roomiest([], 8 * gb, 8 * gb) == "offload"


@pytest.mark.parametrize("stored", [torch.float32, torch.float16, torch.bfloat16])
def test_weights_are_counted_as_transformers_loads_them(stored: torch.dtype, tmp_path: Path) -> None:
    folder = write_tiny_sd3(tmp_path, dtype=stored)
    (folder / "text_encoder" / "model.fp16.safetensors").write_bytes(b"another variant of the same weights")
    for dtype in (None, torch.float32, torch.float16, torch.bfloat16):
        encoder = SD3TextEncoder(folder, 90, dtype)
        counted = encoder.weight_bytes
        loaded = {part: sum(p.nbytes for p in model.parameters()) for part, model in encoder.load()._loaded.items()}
        assert counted == loaded, dtype
        maps = [p for name, p in encoder._loaded["text_encoder_3"].named_parameters() if ".wo." in name]
        kept = torch.float16 in (dtype, None if dtype else stored)
        assert {p.dtype for p in maps} == {torch.float32 if kept else dtype or stored}
        encoder.to("cpu")
        assert {p.dtype for p in maps} == {torch.float32 if kept else dtype or stored}, "as loaded"


def test_weights_that_cannot_be_read_count_with_their_size(tmp_path: Path) -> None:
    for content in (b"", b"\xff" * 20, (4).to_bytes(8, "little") + b"[1]", (2).to_bytes(8, "little") + b"{"):
        (tmp_path / "model.safetensors").write_bytes(content)
        assert loaded_bytes(tmp_path, None) == len(content)
    (tmp_path / "model.safetensors").rename(tmp_path / "a.safetensors")
    for index in ("[]", "{", '{"weight_map": {"w": 3}}'):
        (tmp_path / "model.safetensors.index.json").write_text(index)
        assert loaded_bytes(tmp_path, None) == len(content)
    (tmp_path / "model.safetensors.index.json").write_text('{"weight_map": {"w": "gone.safetensors"}}')
    assert loaded_bytes(tmp_path, None) == 0


@pytest.mark.parametrize("cached", [False, True])
def test_an_encoder_without_room_is_refused_in_one_line(
    cached: bool, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoder: Any = SD3TextEncoder(folder, 90)
    ahead = EncodedAhead(CachedTextEncoder(encoder, tmp_path, release=True) if cached else encoder)
    load_model = SD3TextEncoder._model

    def full(encoder: SD3TextEncoder, kind: Any, part: str) -> Any:
        if part == "text_encoder_3":
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 78 MiB.\nGPU 0 has …")
        return load_model(encoder, kind, part)

    monkeypatch.setattr(SD3TextEncoder, "_model", full)
    with pytest.raises(UserError, match="^the text encoders have no room .*: set text_encoder_device=cpu$"):
        ahead.prepare(PROMPTS, CPU)
    assert not encoder.in_turn and not encoder.loaded
    monkeypatch.undo()
    ahead.prepare(PROMPTS, CPU)
    assert len(ahead.encode(PROMPTS).tokens) == 3, "nothing half done is left"


def test_what_is_on_the_disk_is_not_kept_in_memory(folder: Path, tmp_path: Path) -> None:
    cached = CachedTextEncoder(SD3TextEncoder(folder, 90), tmp_path, release=True)
    ahead = EncodedAhead(cached)
    ahead.prepare(PROMPTS, CPU)
    assert torch.equal(ahead.encode(PROMPTS).tokens, cached.encode(PROMPTS).tokens)
    ahead.encode(["a blue dog"])
    assert not ahead._known and not ahead._later and cached.path("a blue dog").is_file()
    cached.release()
    assert torch.equal(ahead.encode(["two cats"]).tokens, cached.encode(PROMPTS).tokens[2:])


def test_prompts_that_come_later_do_not_fill_the_memory() -> None:
    plain, ahead = HashingTextEncoder(4, 8, 6), EncodedAhead(HashingTextEncoder(4, 8, 6))
    ahead.prepare(["a cat"], CPU)
    many = ["a cat", *(f"photo {n}" for n in range(3 * LATER))]
    for prompts in (many, many[-5:], many[:5]):
        assert torch.equal(ahead.encode(prompts).tokens, plain.encode(prompts).tokens)
    assert len(ahead._later) == LATER and list(ahead._known) == ["a cat"]


@pytest.mark.parametrize("verb", ["restore", "evaluate"])
def test_another_place_is_refused(verb: str, tmp_path: Path) -> None:
    from dit4sr.evaluation.run import run as evaluate

    write_checkpoint(tmp_path / "last.ckpt", "backbone=nano")
    save(tmp_path / "lq" / "a.png", picture(16, 16, 0))
    given = [f"ckpt={tmp_path / 'last.ckpt'}", "device=cpu", "text_encoder_device=cuda", f"out={tmp_path / 'out'}"]
    given += [f"input={tmp_path}"] if verb == "restore" else ["benchmark=folder", f"benchmark.lq={tmp_path / 'lq'}"]
    with pytest.raises(UserError, match="text_encoder_device=cuda: choose one of auto, cpu, offload"):
        {"restore": run, "evaluate": evaluate}[verb](compose_verb(verb, *given))


def test_restore_embeds_the_prompts_of_all_photos_ahead(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_checkpoint(tmp_path / "last.ckpt", "backbone=nano")
    for name in "ab":
        save(tmp_path / "in" / f"{name}.png", picture(16, 16, sum(name.encode())))
        (tmp_path / "in" / f"{name}.txt").write_text(f"the letter {name}")
    ahead: list[list[str]] = []
    prepare = EncodedAhead.prepare
    monkeypatch.setattr(
        EncodedAhead, "prepare", lambda self, p, d: ahead.append(list(p)) or prepare(self, ahead[-1], d)
    )
    results = {}
    for place in ("auto", "offload"):
        out = tmp_path / place
        given = [f"input={tmp_path / 'in'}", f"output={out}", f"ckpt={tmp_path / 'last.ckpt'}", "device=cpu"]
        assert run(compose_verb("restore", *given, "sampler.steps=1", f"text_encoder_device={place}")) == 0
        results[place] = [load(out / f"{name}.png") for name in "ab"]
    np.testing.assert_array_equal(results["auto"], results["offload"])
    (prompts,) = ahead
    assert len(prompts) == 3 and sum("the letter" in prompt for prompt in prompts) == 2

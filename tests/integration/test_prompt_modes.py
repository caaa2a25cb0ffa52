"""Every way of choosing prompts through the verbs: training, restoration and evaluation of tiny networks."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from tiny_checkpoint import TINY, compose_verb, picture, save, write_checkpoint, write_pairs
from tiny_llava import write_tiny_llava
from tiny_sd3_folder import folder_fields, write_tiny_sd3

from dit4sr.config import config_dir
from dit4sr.errors import UserError
from dit4sr.prompts import HashingTextEncoder, TextEmbedding
from dit4sr.prompts.cache import CachedTextEncoder
from dit4sr.training.run import train

FAST = (
    *TINY,
    "backbone.transformer.num_layers=1",
    "backbone.crop=32",
    "backbone.tile.size=8",
    "backbone.tile.overlap=2",
    "training.batch_size=8",
    "training.warmup_steps=1",
    "data.workers=0",
    "sampler.steps=1",
    "trainer.accelerator=cpu",
    "trainer.devices=1",
    "trainer.max_steps=1",
    "trainer.log_every_n_steps=1",
    "callbacks=none",
    "callbacks.progress=false",
    "logger=csv",
)
PROMPTS = sorted(path.stem for path in (config_dir() / "prompt").glob("*.yaml"))


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Every prompt that the hashing encoder embeds."""
    prompts: list[str] = []
    encode = HashingTextEncoder.encode

    def recording(self: HashingTextEncoder, texts: list[str]) -> TextEmbedding:
        prompts.extend(texts)
        return encode(self, texts)

    monkeypatch.setattr(HashingTextEncoder, "encode", recording)
    return prompts


def train_with(data: Path, tmp_path: Path, *overrides: str) -> None:
    config = compose_verb(
        "train", *FAST, f"paths.data={data}", f"paths.cache={tmp_path}/cache", "out=unused", *overrides
    )
    assert train(config, tmp_path / "run") is not None


@pytest.mark.parametrize("prompt", PROMPTS)
def test_every_prompt_config_trains_a_step(prompt: str, data: Path, tmp_path: Path, asked: list[str]) -> None:
    train_with(data, tmp_path, f"prompt={prompt}")
    if prompt == "none":
        assert set(asked) == {""}
    elif prompt == "fixed":
        assert len(asked) == 8 and set(asked) == {"", "a photograph"}
    elif prompt == "cached":
        assert len(asked) == len(set(asked)) > 3  # each once, before training
        assert len(list((tmp_path / "cache" / "prompts").rglob("*.safetensors"))) == len(asked)
    else:
        assert len(asked) == 8 and len(set(asked)) > 2


def test_cached_prompts_train_to_the_same_loss(data: Path, tmp_path: Path) -> None:
    for prompt in ("live", "cached"):
        train_with(data, tmp_path / prompt, f"prompt={prompt}", "trainer.max_steps=2")
    live, cached = ((tmp_path / prompt / "run" / "metrics.csv").read_text() for prompt in ("live", "cached"))
    assert [row.split(",")[:2] for row in live.splitlines()] == [row.split(",")[:2] for row in cached.splitlines()]


def test_a_fixed_prompt_is_dropped_by_chance_alone(data: Path, tmp_path: Path, asked: list[str]) -> None:
    """A photo without a caption is no dropped one, and what is dropped follows from (seed, i)."""
    train_with(data, tmp_path, "prompt=fixed", "training.batch_size=64", "training.prompt_drop=0.5")
    first = list(asked)
    assert 16 < first.count("") < 48
    asked.clear()
    train_with(data, tmp_path / "again", "prompt=fixed", "training.batch_size=64", "training.prompt_drop=0.5")
    assert asked == first
    asked.clear()
    train_with(data, tmp_path / "never", "prompt=fixed", "training.prompt_drop=0")
    assert asked == ["a photograph"] * 8


def test_no_encoder_is_in_memory_while_a_pretrained_base_trains(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Before the first step every prompt is embedded, those of the validation too; then the weights are gone."""
    folder = write_tiny_sd3(tmp_path / "sd3")
    loaded: list[bool] = []
    encode = CachedTextEncoder.encode

    def watching(self: CachedTextEncoder, prompts: list[str]) -> TextEmbedding:
        loaded.append(self.encoder.loaded)  # type: ignore[attr-defined]
        embedding = encode(self, prompts)
        loaded.append(self.encoder.loaded)  # type: ignore[attr-defined]
        return embedding

    monkeypatch.setattr(CachedTextEncoder, "encode", watching)
    overrides = [o for o in FAST if "backbone" not in o]
    config = compose_verb(
        "train",
        *overrides,
        "backbone=sd35_medium",
        f"backbone.pretrained={folder}",
        "backbone.text_encoder.tokens=97",
        "backbone.crop=32",
        "backbone.tile={size: 8, overlap: 2}",
        "data=embedded",
        "prompt=cached",
        "trainer.precision=32-true",
        "callbacks.validate_every=1",
        "callbacks.validation_samples=1",
        "training.batch_size=2",
        f"paths.data={data}",
        f"paths.cache={tmp_path}/cache",
        "out=unused",
    )
    config.backbone.transformer.update({k: list(v) if isinstance(v, tuple) else v for k, v in folder_fields().items()})
    assert train(config, tmp_path / "run") is not None
    assert loaded and not any(loaded)
    assert "prompts encoded into" in capsys.readouterr().err


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("run") / "checkpoints" / "last.ckpt"
    write_checkpoint(path)
    return path


@pytest.fixture(scope="module")
def llava(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_llava(tmp_path_factory.mktemp("models") / "llava")


def restore(tmp_path: Path, checkpoint: Path, *overrides: str) -> dict[str, dict]:  # type: ignore[type-arg]
    from dit4sr.restoration.run import run

    config = compose_verb(
        "restore", f"input={tmp_path}/in", f"output={tmp_path}/out", f"ckpt={checkpoint}", "sampler.steps=1",
        f"paths.cache={tmp_path}/cache", "device=cpu", "overwrite=true", *overrides,
    )  # fmt: skip
    assert run(config, {override.split("=")[0] for override in overrides}) == 0
    facts = {}
    for path in sorted((tmp_path / "out").rglob("*.png")):
        with Image.open(path) as image:
            facts[path.stem] = json.loads(image.text["dit4sr"])  # type: ignore[attr-defined]
    return facts


def test_restore_takes_its_prompts_from_the_captioner(tmp_path: Path, checkpoint: Path, llava: Path) -> None:
    for seed, name in enumerate("ab"):
        save(tmp_path / "in" / f"{name}.png", picture(16, 20, seed))
        (tmp_path / "texts").mkdir(exist_ok=True)
        (tmp_path / "texts" / f"{name}.txt").write_text(f"of {name}")
    (tmp_path / "in" / "a.txt").write_text("beside a")

    def prompts(*overrides: str) -> list[str]:
        facts = restore(tmp_path, checkpoint, *overrides)
        assert {fact["prompts"]["describes"] for fact in facts.values()} == {"lq"}
        return [facts[name]["prompt"] for name in "ab"]

    assert prompts() == prompts("prompt=cached") == ["beside a", ""]
    assert prompts("captioner=folder", f"captioner.path={tmp_path}/texts") == ["of a", "of b"]
    assert prompts("captioner=fixed", "captioner.prompt=a cup") == ["a cup", "a cup"]
    assert prompts("captioner=none") == prompts("prompt=none") == ["", ""]
    described = prompts(
        "captioner=llava", f"captioner.model={llava}", "captioner.max_new_tokens=8", "captioner.drop_optics=false"
    )
    assert all(described) and described[0] != described[1]
    assert (tmp_path / "out" / "b.txt").read_text().strip() == described[1]
    with pytest.raises(UserError, match=r"no caption for 1 of 2 photos \(b\.png\)"):
        (tmp_path / "texts" / "b.txt").unlink()
        prompts("captioner=folder", f"captioner.path={tmp_path}/texts")


def test_evaluation_can_describe_either_image(tmp_path: Path, checkpoint: Path, llava: Path) -> None:
    from dit4sr.evaluation.run import run

    write_pairs(tmp_path, ["a", "b"])

    def prompts(*overrides: str) -> str:
        config = compose_verb(
            "evaluate", "benchmark=folder", f"benchmark.lq={tmp_path}/lq", f"benchmark.hq={tmp_path}/hq",
            f"ckpt={checkpoint}", f"out={tmp_path}/out", f"paths.cache={tmp_path}/cache", "sampler.steps=1",
            "device=cpu", "captioner=llava", f"captioner.model={llava}", "captioner.max_new_tokens=8", *overrides,
        )  # fmt: skip
        assert run(config, {"captioner"}) == 0
        return str(json.loads((tmp_path / "out" / "summary.json").read_text())["settings"]["prompts"])

    assert prompts() == f"captions of the LQ image by {llava}"
    answers = len(list((tmp_path / "cache" / "captions").rglob("*.json")))
    assert prompts("prompt.describes=hq") == f"captions of the HQ image by {llava}"
    assert len(list((tmp_path / "cache" / "captions").rglob("*.json"))) > answers


def test_the_cache_keeps_the_null_embedding(data: Path, tmp_path: Path) -> None:
    train_with(data, tmp_path, "prompt=cached")
    encoder = CachedTextEncoder(HashingTextEncoder(4, 12, 10), tmp_path / "cache" / "prompts", release=True)
    assert torch.equal(load_file(encoder.path(""))["tokens"], HashingTextEncoder(4, 12, 10).encode([""]).tokens[0])

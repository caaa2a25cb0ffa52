"""Training on a pretrained folder, its checkpoints, and what is exported from them, end to end on tiny weights."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from safetensors.torch import load_file, save_file
from tiny_checkpoint import compose_verb, picture, save, write_checkpoint
from tiny_sd3 import DIT4SR, randomise
from tiny_sd3_folder import write_tiny_sd3

from dit4sr import export
from dit4sr.errors import UserError
from dit4sr.evaluation.run import run as evaluate
from dit4sr.models import DiT4SRTransformer2DModel, load_pretrained_base
from dit4sr.models.build import build_on_meta, count_parameters
from dit4sr.models.checkpoint import read_checkpoint
from dit4sr.restoration.loading import load_restorer
from dit4sr.trained_runs import newest_checkpoint
from dit4sr.training.plan import plan_memory
from dit4sr.training.run import train

ROOT = Path(__file__).resolve().parents[2]
LQ = picture(16, 20, seed=1)
STEPS = ("sampler.steps=2", "sampler.guidance=1.5", "device=cpu", "prompt=none")


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_sd3(tmp_path_factory.mktemp("base") / "sd3", dtype=torch.bfloat16)


def train_on(base: Path, data: Path, *overrides: str) -> Any:
    return compose_verb(
        "train", "backbone=sd35_medium", f"backbone.pretrained={base}", "backbone.crop=64", "data=embedded",
        "backbone.text_encoder.tokens=90", "backbone.tile.size=32", "backbone.tile.overlap=8", "data.workers=0",
        "training.batch_size=2", "trainer.max_steps=2", "trainer.accelerator=cpu", "trainer.devices=1",
        "trainer.log_every_n_steps=1", "callbacks=none", "callbacks.progress=false", "logger=csv", "out=unused",
        f"paths.data={data}", *overrides,
    )  # fmt: skip


@pytest.fixture(scope="module")
def checkpoint(base: Path, data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = train(train_on(base, data), tmp_path_factory.mktemp("runs") / "run")
    assert path is not None
    return path


def restore(*overrides: str) -> np.ndarray:
    """What ``python restore.py`` computes with these settings."""
    config: dict[str, Any] = OmegaConf.to_container(  # type: ignore[assignment]
        compose_verb("restore", "input=unused", *STEPS, *overrides), resolve=True
    )
    explicit = {override.split("=")[0] for override in (*STEPS, *overrides)}
    restorer, _ = load_restorer(config, explicit)
    return restorer.restore_batch([LQ], [""], [3], as_float=True)[0]


def run_export(*overrides: str) -> int:
    return export.run(compose_verb("export", *overrides), {override.split("=")[0] for override in overrides})


def test_a_checkpoint_holds_the_trained_weights_alone(checkpoint: Path, base: Path) -> None:
    saved = read_checkpoint(checkpoint)
    assert saved["ema"] and all("_control." in n or ".control_conv." in n for n in saved["ema"])
    assert {f"network.{n}" for n in saved["ema"]} == set(saved["state_dict"])
    assert all(v.dtype == torch.float32 for v in saved["ema"].values())
    identity = saved["dit4sr"]
    assert identity["backbone"]["transformer"]["num_layers"] == 3 and identity["base"]["source"] == str(base)
    weights = 4 * sum(v.numel() for v in saved["ema"].values())
    # Weights, average and AdamW's two moments; the rest is the container's entry of a few hundred bytes a tensor.
    entries = 4 * len(saved["ema"])
    assert 4 * weights < checkpoint.stat().st_size < 4 * weights + 600 * entries + 20_000


def test_the_full_model_s_sizes() -> None:
    config: dict[str, Any] = OmegaConf.to_container(compose_verb("train", "experiment=paper", "out=x"), resolve=True)  # type: ignore[assignment]
    network = build_on_meta(config["model"], config["backbone"])
    trainable = count_parameters(network).trainable
    assert round(4 * trainable / 1e9, 2) == 1.40  # exported
    assert round(4 * 4 * trainable / 1e9, 1) == 5.6  # resumable: weights, average, two moments
    half, full = plan_memory(network, 2), plan_memory(network)
    assert half.frozen * 2 == full.frozen and half.trainable == full.trainable == 4 * trainable


def test_another_base_is_refused(checkpoint: Path, base: Path, data: Path, tmp_path: Path) -> None:
    other = write_tiny_sd3(tmp_path / "other", seed=1, dtype=torch.bfloat16)
    with pytest.raises(UserError, match=r"trained on another base.*set backbone\.pretrained"):
        restore(f"ckpt={checkpoint}", f"backbone.pretrained={other}")
    with pytest.raises(UserError, match="trained on another base"):
        train(train_on(other, data, f"resume={checkpoint}", "trainer.max_steps=3"), tmp_path / "resumed")
    assert train(train_on(base, data, f"resume={checkpoint}", "trainer.max_steps=3"), tmp_path / "resumed")


def test_a_base_that_moved(checkpoint: Path, base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    there = restore(f"ckpt={checkpoint}")
    moved = base.rename(tmp_path / "moved")
    try:
        with pytest.raises(UserError, match=r"which is not here: set backbone\.pretrained=FOLDER"):
            restore(f"ckpt={checkpoint}")
        assert np.array_equal(restore(f"ckpt={checkpoint}", f"backbone.pretrained={moved}"), there)
        monkeypatch.setenv("DIT4SR_SD35", str(moved))
        assert np.array_equal(restore(f"ckpt={checkpoint}"), there)
        assert np.array_equal(restore(f"ckpt={checkpoint}", "backbone=sd35_medium"), there)
    finally:
        moved.rename(base)


def test_exports_restore_as_the_checkpoint_does(checkpoint: Path, base: Path, tmp_path: Path) -> None:
    reference = restore(f"ckpt={checkpoint}")
    assert run_export(f"ckpt={checkpoint}", f"out={tmp_path}/full") == 0
    assert run_export(f"ckpt={checkpoint}", f"out={tmp_path}/part", "what=trainable") == 0
    for folder in ("full", "full/transformer", "part"):
        assert np.array_equal(restore(f"weights={tmp_path}/{folder}"), reference), folder

    weights = 4 * sum(v.numel() for v in read_checkpoint(checkpoint)["ema"].values())
    assert weights < (tmp_path / "part" / "control.safetensors").stat().st_size < weights + 20_000
    assert {p.name for p in (tmp_path / "part").iterdir()} == {"control.safetensors", "dit4sr.json"}

    # The full folder needs no base; the large frozen files are the base's own.
    frozen = tmp_path / "full" / "text_encoder_3" / "model.safetensors"
    assert frozen.samefile(base / "text_encoder_3" / "model.safetensors")
    hidden = base.rename(tmp_path / "hidden")
    try:
        assert np.array_equal(restore(f"weights={tmp_path}/full"), reference)
        with pytest.raises(UserError, match="which is not here"):
            restore(f"weights={tmp_path}/part")
        assert np.array_equal(restore(f"weights={tmp_path}/part", f"backbone.pretrained={hidden}"), reference)
    finally:
        hidden.rename(base)
    with pytest.raises(UserError, match="lr_residual: False ≠ True"):
        restore(f"weights={tmp_path}/part", "model=variant_b")


def test_the_pipeline_reads_the_full_export(checkpoint: Path, tmp_path: Path) -> None:
    from dit4sr.restoration.pipeline import DiT4SRPipeline

    run_export(f"ckpt={checkpoint}", f"out={tmp_path}/full", "injection_scale=1.2", "max_shard_size=40KB", "link=false")
    assert len(list((tmp_path / "full" / "transformer").glob("*.safetensors"))) > 1
    pipeline = DiT4SRPipeline.from_pretrained(tmp_path / "full")
    assert pipeline.transformer.lr_injection_scale == 1.2
    scaled, plain = restore(f"ckpt={checkpoint}", "injection_scale=1.2"), restore(f"ckpt={checkpoint}")
    assert np.array_equal(restore(f"weights={tmp_path}/full"), scaled) and not np.array_equal(scaled, plain)
    assert type(pipeline.text_encoder_3).__name__ == "T5EncoderModel"
    trained = read_checkpoint(checkpoint)["ema"]
    loaded = dict(pipeline.transformer.named_parameters())
    for name, value in trained.items():
        assert torch.equal(loaded[name].float(), value.bfloat16().float()), name


def test_an_embedded_model_is_exported_too(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "run" / "checkpoints" / "last.ckpt")
    reference = restore(f"ckpt={tmp_path}/run")
    for what in ("full", "trainable"):
        assert run_export(f"ckpt={tmp_path}/run", f"out={tmp_path}/{what}", f"what={what}") == 0
        assert np.array_equal(restore(f"weights={tmp_path}/{what}"), reference)


def test_nothing_is_overwritten_or_left_behind(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "run" / "checkpoints" / "last.ckpt")
    out = tmp_path / "out"
    run_export(f"ckpt={tmp_path}/run", f"out={out}", "what=trainable")
    with pytest.raises(UserError, match=r"is not empty: give another folder, or overwrite=true"):
        run_export(f"ckpt={tmp_path}/run", f"out={out}")
    with pytest.raises(UserError, match="choose one of full, trainable"):
        run_export(f"ckpt={tmp_path}/run", f"out={out}", "what=all")
    (tmp_path / "broken.ckpt").write_bytes(b"x")
    with pytest.raises(UserError, match="cannot be read"):
        run_export(f"ckpt={tmp_path}/broken.ckpt", f"out={out}", "overwrite=true")
    assert (out / "control.safetensors").is_file() and len(list(tmp_path.iterdir())) == 3
    run_export(f"ckpt={tmp_path}/run", f"out={out}", "overwrite=true")
    assert (out / "model_index.json").is_file() and not (out / "control.safetensors").exists()


@pytest.fixture(scope="module")
def released(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as the authors released it, on this base."""
    folder = tmp_path_factory.mktemp("released") / "transformer"
    network = DiT4SRTransformer2DModel.from_sd3(load_pretrained_base(base, torch.float32), DIT4SR)
    randomise(network, 5, only=network.control_parameter_names())
    network.save_pretrained(folder)
    config = {k: v for k, v in json.loads((folder / "config.json").read_text()).items() if not k.startswith("lr_")}
    (folder / "config.json").write_text(json.dumps({**config, "_class_name": "SD3Transformer2DModel"}))
    file = folder / "diffusion_pytorch_model.safetensors"
    save_file({**load_file(file), "transformer_blocks.0.attn2.add_q_proj.bias": torch.zeros(16)}, file)
    return folder.parent


def test_released_weights_through_restore(released: Path, base: Path) -> None:
    there = f"backbone.pretrained={base}"
    images = {
        preset: restore(f"weights={released}", f"weights_preset={preset}", there)
        for preset in ("dit4sr_q", "dit4sr_f", "dit4sr_r1")
    }
    assert np.array_equal(images["dit4sr_q"], images["dit4sr_f"])
    assert not np.allclose(images["dit4sr_q"], images["dit4sr_r1"], atol=1e-3)
    plain = restore(f"weights={released}", "weights_preset=dit4sr_r1", there, "injection_scale=1")
    assert not np.allclose(plain, images["dit4sr_r1"], atol=1e-4)
    for overrides, words in (
        ((), "choose weights_preset=dit4sr_q"),
        (("weights_preset=dit4sr_q", "ckpt=x"), "give one of them"),
        (("weights_preset=dit4sr_q", "model=variant_b"), "lr_residual"),
        (("weights_preset=dit4sr_q", "injection_scale=much"), "give a number"),
    ):
        with pytest.raises(UserError, match=words):
            restore(f"weights={released}", there, *overrides)
    with pytest.raises(UserError, match="give their folder too"):
        restore("weights_preset=dit4sr_q", there)
    with pytest.raises(UserError, match="there is no such folder"):
        restore(f"weights={released}", "weights_preset=dit4sr_q", "backbone.pretrained=/nowhere")


def test_released_weights_through_evaluate(released: Path, base: Path, tmp_path: Path) -> None:
    for folder, side in (("lq", 16), ("hq", 64)):
        save(tmp_path / folder / "a.png", picture(side, side, seed=1))
    given = [f"weights={released}", "weights_preset=dit4sr_r1", f"backbone.pretrained={base}", *STEPS]
    given += ["benchmark=folder", f"benchmark.lq={tmp_path / 'lq'}", f"benchmark.hq={tmp_path / 'hq'}", "pictures=1"]
    given += [f"out={tmp_path / 'out'}", "metrics.names=[psnr]"]
    assert evaluate(compose_verb("evaluate", *given), {option.split("=")[0] for option in given}) == 0
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert summary["method"]["name"] == "dit4sr_r1" and summary["method"]["ckpt"] == str(released)
    assert summary["method"]["injection_scale"] == 1.2
    assert summary["methods"]["dit4sr_r1"]["psnr"]["n"] == 1
    assert (tmp_path / "out" / "restored" / "a.png").is_file()


def test_a_released_folder_with_its_own_vae_and_text_encoders(released: Path, base: Path, tmp_path: Path) -> None:
    expected = restore(f"weights={released}", "weights_preset=dit4sr_q", f"backbone.pretrained={base}")
    whole = Path(shutil.copytree(base, tmp_path / "whole"))
    shutil.rmtree(whole / "transformer")
    shutil.copytree(released / "transformer", whole / "transformer")
    assert np.array_equal(restore(f"weights={whole}", "weights_preset=dit4sr_q"), expected)


def test_the_verbs_on_the_command_line(released: Path, base: Path, tmp_path: Path) -> None:
    save(tmp_path / "in" / "a.png", LQ)

    def verb(*arguments: str) -> subprocess.CompletedProcess[str]:
        environment = {**os.environ, "DIT4SR_SD35": str(base), "OMP_NUM_THREADS": "1"}
        return subprocess.run(
            [sys.executable, *arguments], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=800,
            check=False,
        )  # fmt: skip

    done = verb(
        "restore.py", f"weights={released}", "weights_preset=dit4sr_q", f"input={tmp_path}/in",
        f"output={tmp_path}/out", *STEPS,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out" / "a.png").is_file()
    done = verb("-m", "dit4sr", "export", "ckpt=/nowhere.ckpt", f"out={tmp_path}/e")
    assert done.returncode == 2 and done.stderr.startswith("error: no checkpoint at /nowhere.ckpt")
    assert "Traceback" not in done.stderr and not (tmp_path / "e").exists()


def test_the_newest_checkpoint_of_model_and_backbone(tmp_path: Path) -> None:
    for number, (model, backbone) in enumerate((("dit4sr", "small"), ("dit4sr", "nano"), ("variant_b", "small"))):
        run = tmp_path / str(number)
        (run / "checkpoints").mkdir(parents=True)
        (run / "checkpoints" / "last.ckpt").touch()
        os.utime(run / "checkpoints" / "last.ckpt", (number, number))
        OmegaConf.save({"model": {"name": model}, "backbone": {"name": backbone}}, run / "config.yaml")
    assert newest_checkpoint(tmp_path, "dit4sr").parent.parent.name == "1"
    assert newest_checkpoint(tmp_path, "dit4sr", "small").parent.parent.name == "0"
    with pytest.raises(UserError, match=r"model=variant_b backbone=nano under .*there are model=variant_b backbone=s"):
        newest_checkpoint(tmp_path, "variant_b", "nano")

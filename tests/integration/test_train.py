"""Training end to end on tiny networks: real shards, real files, real processes."""

from __future__ import annotations

import csv
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from omegaconf import DictConfig, OmegaConf
from tiny_checkpoint import TINY, compose_verb

from dit4sr.config import config_dir
from dit4sr.errors import UserError
from dit4sr.models.checkpoint import load_trained, read_checkpoint
from dit4sr.trained_runs import newest_checkpoint
from dit4sr.training.run import train

ROOT = Path(__file__).resolve().parents[2]
FAST = (
    *TINY,
    "backbone.crop=32",
    "backbone.tile.size=8",
    "backbone.tile.overlap=2",
    "training.batch_size=4",
    "training.warmup_steps=2",
    "data.workers=0",
    "sampler.steps=2",
    "trainer.accelerator=cpu",
    "trainer.devices=1",
    "trainer.log_every_n_steps=1",
    "callbacks=none",
    "callbacks.progress=false",
    "logger=csv",
)
MODELS = ("dit4sr", "variant_a", "variant_b", "variant_c", "variant_d", "sd3_controlnet")


def config_of(data: Path, *overrides: str) -> DictConfig:
    layers = "2" if any("sd3_controlnet" in o for o in overrides) else "1"
    return compose_verb(
        "train", *FAST, f"backbone.transformer.num_layers={layers}", f"paths.data={data}", "out=unused", *overrides
    )


def losses(out: Path) -> list[str]:
    with (out / "metrics.csv").open(newline="") as file:
        return [row["train/loss"] for row in csv.DictReader(file) if row["train/loss"]]


def run_verb(verb: str, *arguments: str, cwd: Path = ROOT, timeout: float = 800) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "WANDB_MODE": "offline"}
    return subprocess.run(
        [sys.executable, str(ROOT / f"{verb}.py"), *arguments],
        cwd=cwd,
        env=environment,
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )


@pytest.mark.parametrize("model", MODELS)
def test_every_model_trains_validates_and_loads(model: str, data: Path, tmp_path: Path) -> None:
    config = config_of(
        data, f"model={model}", "trainer.max_steps=3", "callbacks.validate_every=3", "callbacks.validation_samples=1"
    )
    checkpoint = train(config, tmp_path)
    assert checkpoint == tmp_path / "checkpoints" / "last.ckpt"
    assert (tmp_path / "checkpoints" / "best.ckpt").is_file()
    assert (tmp_path / "validation" / "step_0000003.png").is_file()
    saved_config = OmegaConf.load(tmp_path / "config.yaml")
    assert saved_config.model.name == model and saved_config.revision
    with (tmp_path / "metrics.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0])[0] == "step"
    assert [row["step"] for row in rows if row["train/loss"]] == ["1", "2", "3"]
    assert all(float(row["train/loss"]) == float(repr(float(row["train/loss"]))) > 0 for row in rows)
    assert float(rows[-1]["val/psnr"]) > 0 and float(rows[-1]["val/loss"]) > 0
    trained = load_trained(checkpoint)
    assert trained.step == 3 and trained.config["model"]["name"] == model
    assert not trained.network.training


def test_the_averaged_weights_move_with_the_weights(data: Path, tmp_path: Path) -> None:
    checkpoint = read_checkpoint(train(config_of(data, "trainer.max_steps=3"), tmp_path))  # type: ignore[arg-type]
    state = {n.removeprefix("network."): v for n, v in checkpoint["state_dict"].items()}
    assert set(state) == set(checkpoint["ema"])
    assert any(not torch.equal(state[n], checkpoint["ema"][n]) for n in state)


def test_same_seed_same_stream_and_same_start_for_all_models(data: Path, tmp_path: Path) -> None:
    """Models that agree on a network's first output have the same first loss: at the start L cannot show."""
    first = {}
    for model in ("dit4sr", "variant_b", "variant_c"):
        out = tmp_path / model
        train(config_of(data, f"model={model}", "trainer.max_steps=1"), out)
        first[model] = torch.load(out / "checkpoints" / "last.ckpt", weights_only=True)
    names = set.intersection(*({n for n in c["state_dict"] if "control" not in n} for c in first.values()))
    assert names
    for model in ("variant_b", "variant_c"):
        for name in ("network.pos_embed.proj.weight", "network.context_embedder.weight"):
            start = [c["state_dict"][name] for c in (first["dit4sr"], first[model])]
            torch.testing.assert_close(*start, atol=2e-3, rtol=0)  # one step of at most the learning rate apart


@pytest.mark.parametrize("workers", [0, 2])
def test_resume_equals_an_uninterrupted_run_bit_for_bit(workers: int, data: Path, tmp_path: Path) -> None:
    overrides = (f"data.workers={workers}", "trainer.max_steps=6", "callbacks.checkpoint_every=3")
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    train(config_of(data, *overrides), whole)

    stopped = config_of(data, *overrides)
    steps = stopped.trainer.max_steps
    # The first part is stopped by Lightning's limit; the schedule is that of the whole run.
    stopped.trainer.max_steps, stopped.training.schedule = 3, "constant"
    constant = config_of(data, *overrides, "training.schedule=constant")
    train(stopped, parts)
    stopped.trainer.max_steps = steps
    train(stopped, parts)
    reference = tmp_path / "reference"
    train(constant, reference)
    assert losses(parts) == losses(reference) and len(losses(parts)) == 6
    resumed, straight = (read_checkpoint(folder / "checkpoints" / "last.ckpt") for folder in (parts, reference))
    for part in ("state_dict", "ema"):
        for name, value in straight[part].items():
            assert torch.equal(value, resumed[part][name]), name
    assert losses(whole) != losses(reference)  # the schedule matters, so the comparison above can fail


def test_workers_do_not_change_the_losses(data: Path, tmp_path: Path) -> None:
    for workers in (0, 1, 2):
        train(config_of(data, f"data.workers={workers}", "trainer.max_steps=3"), tmp_path / str(workers))
    assert losses(tmp_path / "0") == losses(tmp_path / "1") == losses(tmp_path / "2")


def test_accumulation_gives_the_same_loss(data: Path, tmp_path: Path) -> None:
    train(config_of(data, "trainer.max_steps=2", "training.batch_size=8"), tmp_path / "whole")
    train(
        config_of(data, "trainer.max_steps=2", "training.batch_size=8", "trainer.accumulate_grad_batches=2"),
        tmp_path / "parts",
    )
    one, two = (read_checkpoint(tmp_path / n / "checkpoints" / "last.ckpt")["state_dict"] for n in ("whole", "parts"))
    for name, value in one.items():
        torch.testing.assert_close(value, two[name], atol=1e-4, rtol=1e-3)


def test_the_gpu_recipe_s_precision_and_optimiser_train(data: Path, tmp_path: Path) -> None:
    """bf16-mixed with AdamW and clipping, as backbone=small and experiment=paper have it."""
    config = config_of(data, "training.precision=bf16-mixed", "training.optimizer=adamw", "trainer.max_steps=2")
    train(config, tmp_path)
    exact = config_of(data, "training.optimizer=adamw", "trainer.max_steps=2")
    train(exact, tmp_path / "exact")
    for rounded, precise in zip(losses(tmp_path), losses(tmp_path / "exact"), strict=True):
        assert float(rounded) == pytest.approx(float(precise), rel=0.05)


def test_the_readme_has_no_placeholder() -> None:
    assert "DEMO_TABLE" not in (ROOT / "README.md").read_text(encoding="utf-8")


def test_a_fixed_batch_is_fitted(data: Path, tmp_path: Path) -> None:
    """debug=overfit gives the same samples again and again, so σ and ε stay too and the loss must fall."""
    config = config_of(
        data,
        "debug=overfit",
        "trainer.max_steps=60",
        "training.learning_rate=5e-3",
        "training.schedule=constant",
        "backbone.transformer.num_attention_heads=4",
        "backbone.transformer.attention_head_dim=32",
        "backbone.transformer.caption_projection_dim=128",
        "debugging.detect_anomaly=false",
    )
    train(config, tmp_path)
    values = [float(v) for v in losses(tmp_path)]
    assert values[-1] < 0.5 * values[0]


EXPERIMENTS = sorted(path.stem for path in (config_dir() / "experiment").glob("*.yaml"))


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_every_experiment_composes_and_runs_a_step(experiment: str, data: Path, tmp_path: Path) -> None:
    """The experiment's own recipe; network and crop are made tiny, and weights and shards the embedded ones."""
    composed = compose_verb("train", f"experiment={experiment}", f"paths.data={data}", "out=unused")
    OmegaConf.resolve(composed)
    config = config_of(
        data, f"experiment={experiment}", "backbone=nano", "data=embedded", "data.shards=null", "data.workers=0",
        "trainer.max_steps=1", "training.precision=32-true", "evaluate=false",
    )  # fmt: skip
    assert train(config, tmp_path) is not None
    assert len(losses(tmp_path)) == 1


@pytest.mark.parametrize("debug", sorted(path.stem for path in (config_dir() / "debug").glob("*.yaml")))
def test_every_debug_config_runs(debug: str, data: Path, tmp_path: Path) -> None:
    config = config_of(data, f"debug={debug}", "trainer.max_steps=2", "logger=csv", "callbacks.validate_every=0")
    checkpoint = train(config, tmp_path)
    assert (checkpoint is None) == (debug == "fdr")


def test_paper_plan_prints_the_published_numbers() -> None:
    done = run_verb("train", "experiment=paper", "plan=true")
    assert done.returncode == 0, done.stderr
    assert "2594.05 M" in done.stdout and "350.88 M" in done.stdout
    assert "constant rate 5e-05" in done.stdout and "of 64 512×512" in done.stdout


@pytest.mark.parametrize(
    ("verb", "arguments", "words"),
    [
        ("train", ["model=variant_x"], ["variant_x", "variant_a", "sd3_controlnet"]),
        ("train", ["training.nonsense=1"], ["nonsense"]),
        ("train", ["resume=/nowhere.ckpt"], ["/nowhere.ckpt", "no such checkpoint"]),
        ("train", ["backbone=sd35_medium", "backbone.pretrained=/nowhere"], ["/nowhere", "DIT4SR_SD35"]),
        ("train", ["model.lr_attention=separate", "model.lr_injection=none"], ["never reach"]),
        ("train", ["data=shards", "data.shards=/nowhere"], ["/nowhere", "prepare.py"]),
        ("train", ["data.jpeg=kornia"], ["data.jpeg=kornia"]),
        ("train", ["seed=-1"], ["seed=-1", "whole number"]),
        ("train", ["evaluate=true", "benchmark=realsr"], ["realsr", "test_LR"]),  # before the training
        ("train", ["data.batch_size=3", "trainer.accumulate_grad_batches=2"], ["data.batch_size=3", "multiple of 2"]),
    ],
)
def test_bad_configurations_are_one_line_and_exit_2(
    verb: str, arguments: list[str], words: list[str], data: Path, tmp_path: Path
) -> None:
    done = run_verb(verb, *arguments, f"paths.data={data}", f"out={tmp_path}/out", "trainer.max_steps=1", "logger=csv")
    assert done.returncode == 2, done.stdout + done.stderr
    lines = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1 and "Traceback" not in done.stderr
    assert all(word in lines[0] for word in words), lines[0]


def test_a_checkpoint_of_another_variant_is_refused_by_field(data: Path, tmp_path: Path) -> None:
    checkpoint = train(config_of(data, "model=variant_b", "trainer.max_steps=1"), tmp_path / "b")
    with pytest.raises(UserError, match=r"lr_residual: True ≠ False"):
        train(config_of(data, f"resume={checkpoint}", "trainer.max_steps=2"), tmp_path / "other")


def test_damaged_and_foreign_checkpoints_are_refused(data: Path, tmp_path: Path) -> None:
    checkpoint = train(config_of(data, "trainer.max_steps=1"), tmp_path / "run")
    assert checkpoint is not None
    truncated = tmp_path / "truncated.ckpt"
    truncated.write_bytes(checkpoint.read_bytes()[:-2000])
    with pytest.raises(UserError, match=r"truncated\.ckpt cannot be read"):
        load_trained(truncated)
    foreign = tmp_path / "foreign.ckpt"
    torch.save({"state_dict": {}}, foreign)
    with pytest.raises(UserError, match="not a checkpoint of dit4sr"):
        load_trained(foreign)
    with pytest.raises(UserError, match="no checkpoint at"):
        load_trained(tmp_path / "missing.ckpt")

    class Malicious:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return os.system, (f"touch {tmp_path}/executed",)

    torch.save({"dit4sr": Malicious(), "ema": {}}, tmp_path / "malicious.ckpt")
    with pytest.raises(UserError, match="cannot be read"):
        load_trained(tmp_path / "malicious.ckpt")
    assert not (tmp_path / "executed").exists()


def test_the_newest_checkpoint_of_a_model_is_found(data: Path, tmp_path: Path) -> None:
    for number, model in enumerate(("dit4sr", "variant_b", "dit4sr")):
        train(config_of(data, f"model={model}", "trainer.max_steps=1"), tmp_path / f"run{number}")
        os.utime(tmp_path / f"run{number}" / "checkpoints" / "last.ckpt", (number, number))
    assert newest_checkpoint(tmp_path, "dit4sr") == tmp_path / "run2" / "checkpoints" / "last.ckpt"
    assert newest_checkpoint(tmp_path, "variant_b") == tmp_path / "run1" / "checkpoints" / "last.ckpt"
    with pytest.raises(UserError, match="model=variant_d"):
        newest_checkpoint(tmp_path, "variant_d")


def test_an_ablation_sweep_ends_in_one_table_and_one_picture(data: Path, tmp_path: Path) -> None:
    done = run_verb(
        "train",
        "-m",
        "experiment=ablation",
        "model=dit4sr,sd3_controlnet",
        *FAST,
        "backbone.transformer.num_layers=2",
        f"paths.data={data}",
        f"out={tmp_path}/sweep",
        "trainer.max_steps=1",
    )
    assert done.returncode == 0, done.stderr
    with (tmp_path / "sweep" / "table.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert {row["model"] for row in rows} == {"bicubic", "dit4sr", "sd3_controlnet"}
    assert {row["metric"] for row in rows} >= {"psnr", "ssim"}
    assert {row["steps"] for row in rows if row["model"] != "bicubic"} == {"1"}
    assert (tmp_path / "sweep" / "comparison.png").stat().st_size > 10_000
    table = (tmp_path / "sweep" / "table.md").read_text()
    assert "sd3_controlnet" in table and "same data stream" in table

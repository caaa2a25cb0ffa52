"""Settings of a training that mean nothing: one line each, before anything heavy is imported."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf
from tiny_checkpoint import compose_verb

from dit4sr.config import config_dir
from dit4sr.errors import UserError
from dit4sr.training.checks import SETTINGS, check_devices, check_values
from dit4sr.training.run import train


def plain(*overrides: str) -> dict[str, Any]:
    config = OmegaConf.to_container(compose_verb("train", "out=unused", *overrides), resolve=True)
    assert isinstance(config, dict)
    return {str(name): value for name, value in config.items()}


def with_value(config: dict[str, Any], setting: str) -> dict[str, Any]:
    """A copy in which ``a.b=value`` is set, the value read as YAML."""
    name, _, value = setting.partition("=")
    changed = OmegaConf.create(config)
    OmegaConf.update(changed, name, OmegaConf.create(f"v: {value}").v)
    return OmegaConf.to_container(changed)  # type: ignore[return-value]


@pytest.fixture(scope="module")
def default() -> dict[str, Any]:
    return plain()


REFUSED = [
    "seed=-1", "seed=1.5", "resume=null", "resume_changes=maybe", "plan=maybe", "evaluate=maybe", "out=null",
    "trainer.max_steps=abc", "trainer.max_steps=null", "trainer.max_steps=-1", "trainer.max_steps=0",
    "trainer.max_steps=1.5", "trainer.max_steps=true", "trainer.accelerator=tpu", "trainer.precision=foo",
    "trainer.precision=32", "trainer.devices=0", "trainer.devices='0'", "trainer.devices=foo", "trainer.devices=null",
    "trainer.devices=-2", "trainer.devices=[]", "trainer.devices=[1,1]", "trainer.devices='0,x'",
    "trainer.devices=1.5", "trainer.num_nodes=0", "trainer.strategy=foo", "trainer.log_every_n_steps=0",
    "trainer.gradient_clip_val=nan", "trainer.deterministic=perhaps", "trainer.micro_batch=0",
    "training.learning_rate=abc", "training.learning_rate=-1", "training.learning_rate=.nan",
    "training.optimizer=foo", "training.loss=foo", "training.schedule=foo", "training.betas=[0.9]",
    "training.betas=[0.9,1]", "training.shift=0", "training.ema_decay=2", "training.compile=true",
    "training.gradient_checkpointing=maybe", "data.batch_size=abc", "data.batch_size=0", "data.workers=-1",
    "data.order=foo", "data.engine=foo", "data.prompt_drop=1.1", "data.augmentation.turns=maybe",
    "callbacks.checkpoint_every=abc", "callbacks.progress=maybe", "logger.wandb.mode=foo", "logger.csv=maybe",
    "debugging.profiler=foo", "backbone.transformer.num_layers=0", "backbone.transformer.patch_size=abc",
    "backbone.transformer.dual_attention_layers=[-1]", "backbone.crop=null", "model.lr_injection=null",
]  # fmt: skip


@pytest.mark.parametrize("setting", REFUSED)
def test_a_value_that_means_nothing_is_one_line_that_names_it(setting: str, default: dict[str, Any]) -> None:
    name, _, value = setting.partition("=")
    with pytest.raises(UserError) as caught:
        check_values(with_value(default, setting))
    line = str(caught.value)
    assert line.startswith(f"{name}=") and "\n" not in line
    assert value.strip("'.").lower()[:3] in line.replace(", ", ",").lower()


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("backbone.transformer.num_attention_heads=5", "num_attention_heads=5 × attention_head_dim=16 is 80: .* is 64"),
        ("backbone.transformer.joint_attention_dim=12", "joint_attention_dim=12 must be .*text_encoder.width.* 64"),
        ("backbone.text_encoder.pooled_width=12", "pooled_projection_dim=64 must be .*pooled_width, which is 12"),
        ("trainer.accumulate_grad_batches=3", "batch_size=32 cannot be split over 1 devices × 3 acc.* multiple of 3"),
        ("trainer.devices=5", "batch_size=32 cannot be split over 5 devices × 1 accumulation steps"),
        ("trainer.devices=[0,1,2]", "over 3 devices"),
        ("trainer.num_nodes=3", "over 3 devices"),
        ("model.network=foo", "choose one of dit4sr, sd3_controlnet"),
        ("model.lr_attention=foo", "choose one of joint, separate"),
    ],
)
def test_values_that_do_not_fit_each_other_are_named(setting: str, words: str, default: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=words):
        check_values(with_value(default, setting))


@pytest.mark.parametrize(
    "setting",
    [
        "trainer.devices=auto", "trainer.devices=2", "trainer.devices='2'", "trainer.devices=-1",
        "trainer.devices=[0,3]", "trainer.devices='0,3'", "trainer.devices=[0]", "trainer.gradient_clip_val=null",
        "trainer.micro_batch=2", "training.compile=blocks", "training.compile=false", "training.learning_rate=0",
        "trainer.deterministic=warn", "callbacks.keep_last=0", "debugging.profiler=simple", "resume=7", "out=7",
        "backbone.transformer.dual_attention_layers=[0,1]",
    ],
)  # fmt: skip
def test_a_value_that_means_something_passes(setting: str, default: dict[str, Any]) -> None:
    check_values(with_value(default, setting))


GROUPS = ("model", "backbone", "data", "trainer", "trainer/memory", "callbacks", "logger", "experiment", "debug")


@pytest.mark.parametrize(
    "option",
    [f"{group}={path.stem}" for group in GROUPS for path in sorted((config_dir() / group).glob("*.yaml"))],
)
def test_every_config_of_this_repository_passes(option: str) -> None:
    check_values(plain(option))


def test_every_setting_of_the_table_is_one_of_the_configs() -> None:
    known: set[str] = set()
    for overrides in ((), ("data=paired",), ("trainer=fsdp",)):
        flat = OmegaConf.create(plain(*overrides))
        known |= {name for name in SETTINGS if OmegaConf.select(flat, name, default="absent") != "absent"}
    assert set(SETTINGS) == known


def test_a_gpu_that_is_not_there_is_refused() -> None:
    import torch

    check_devices({"accelerator": "cpu", "devices": 2})
    check_devices({"accelerator": "auto", "devices": "auto"})
    with pytest.raises(UserError, match="on the CPU give a number of processes"):
        check_devices({"accelerator": "cpu", "devices": [0, 1]})
    if not torch.cuda.is_available() and not torch.backends.mps.is_available():
        for accelerator, devices in (("gpu", 1), ("cuda", "auto"), ("auto", "0,1"), ("auto", -1)):
            with pytest.raises(UserError, match="finds no such GPU here"):
                check_devices({"accelerator": accelerator, "devices": devices})


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("training.optimizer=foo", "training.optimizer=foo"),
        ("sampler.colour=foo", "sampler.colour='foo'"),
        ("degradation.jpeg_range=[0,200]", "jpeg_range=.0, 200. must be JPEG qualities"),
    ],
)
def test_train_asks_before_it_makes_a_folder(tmp_path: Path, setting: str, words: str) -> None:
    with pytest.raises(UserError, match=words):
        train(compose_verb("train", setting, "out=unused"), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_nothing_heavy_is_imported_before_the_answer(tmp_path: Path) -> None:
    """By the verb itself, whose answer is one line and status 2."""
    script = (
        "import sys; from dit4sr.cli import main\n"
        f"sys.argv = ['train.py', 'training.optimizer=foo', 'out={tmp_path}/run']\n"
        "status = main('train')\n"
        "print(status, *(name for name in ('torch', 'lightning', 'diffusers') if name in sys.modules))\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.stdout.split() == ["2"]
    assert done.stderr == "error: training.optimizer=foo: choose one of adamw, adamw8bit, muon\n"

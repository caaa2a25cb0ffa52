"""The recipe of CONTRIBUTING.md, "Add a variant in one YAML file", followed to the letter."""

from __future__ import annotations

import csv
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf

from dit4sr.config import config_dir
from dit4sr.errors import UserError
from dit4sr.flow import interpolate, latent_loss
from dit4sr.models import DiT4SRTransformer2DModel, LRStreamSpec
from dit4sr.models.build import build_network

ROOT = Path(__file__).resolve().parents[2]


def recipe() -> tuple[str, str]:
    """The variant's name, as its file is called, and the YAML block."""
    page = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    (found,) = re.findall(r"<!-- configs/model/(\w+)\.yaml:.*?-->\n```yaml\n(.*?)```", page, re.DOTALL)
    return found


def nano() -> Any:
    return OmegaConf.load(config_dir() / "backbone" / "nano.yaml")


def test_the_block_is_a_new_variant() -> None:
    name, block = recipe()
    model = OmegaConf.create(block)
    assert model.name == name
    existing = [OmegaConf.load(path) for path in (config_dir() / "model").glob("*.yaml")]
    assert len(existing) >= 6
    for other in existing:
        assert model.name != other.name
        facts = {k: v for k, v in model.items() if k != "name"}
        assert facts != {k: v for k, v in other.items() if k != "name"}


def test_the_block_builds_the_variant_that_it_claims() -> None:
    _, block = recipe()
    network = build_network(OmegaConf.create(block), nano(), seed=0)
    assert isinstance(network, DiT4SRTransformer2DModel)
    assert network.spec == LRStreamSpec(attention="joint", residual=False, injection="per_channel", key_source="lr")
    injection = {n.split(".ff.")[1] for n in network.control_parameter_names() if ".ff." in n}
    assert injection == {"control_scale", "control_shift"}


def test_the_block_trains() -> None:
    """Plain gradient steps on one batch: the loss falls, and the new variant's own weights move."""
    _, block = recipe()
    backbone = nano()
    text = backbone.text_encoder
    network = build_network(OmegaConf.create(block), backbone, seed=0)
    g = torch.Generator().manual_seed(0)
    z, eps = torch.randn(2, 4, 16, 8, 8, generator=g).unbind(0)
    sigma = torch.rand(4, generator=g)
    tokens = torch.randn(4, text.tokens, text.width, generator=g)
    pooled = torch.randn(4, text.pooled_width, generator=g)
    optimizer = torch.optim.AdamW([p for p in network.parameters() if p.requires_grad], lr=1e-3)
    losses = []
    for _ in range(30):
        velocity = network(interpolate(z, eps, sigma), z, 1000 * sigma, tokens, pooled, return_dict=False)
        loss = latent_loss(velocity, z, eps, sigma)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.9 * losses[0]
    assert all(block.ff.control_scale.any() for block in network.transformer_blocks)


def test_a_forgotten_field_is_named() -> None:
    _, block = recipe()
    for field in "lr_attention", "lr_residual", "lr_injection", "lr_key_source":
        model = OmegaConf.create(block)
        del model[field]
        with pytest.raises(UserError, match=field):
            build_network(model, nano(), seed=0)


def test_the_command_of_the_recipe_trains_it(tmp_path: Path) -> None:
    """``python train.py model=<name>``; the file stands in a folder of its own, not in the checkout."""
    name, block = recipe()
    (tmp_path / "configs" / "model").mkdir(parents=True)
    (tmp_path / "configs" / "model" / f"{name}.yaml").write_text(block)
    command = [sys.executable, "train.py", "--config-dir", str(tmp_path / "configs"), f"model={name}"]
    command += [
        "debug=default",
        "trainer.max_steps=2",
        f"out={tmp_path / 'run'}",
        f"paths.data={tmp_path / 'data'}",
    ]
    environment = os.environ | {"WANDB_MODE": "offline", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=800)
    assert done.returncode == 0, done.stderr[-3000:]
    config = OmegaConf.load(tmp_path / "run" / "config.yaml")
    assert config.model == OmegaConf.create(block)
    with (tmp_path / "run" / "metrics.csv").open() as file:
        losses = [row["train/loss"] for row in csv.DictReader(file) if row["train/loss"]]
    assert losses and all(0 < float(loss) < 100 for loss in losses)
    assert (tmp_path / "run" / "checkpoints" / "last.ckpt").stat().st_size > 1e5

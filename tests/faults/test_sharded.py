"""Fully sharded training in real processes (gloo): the losses of one, and checkpoints that any number goes on from."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest
import torch
from faults.commands import FAST
from faults.harness import rows, start, start_ranks
from omegaconf import DictConfig
from safetensors.torch import load_file
from tiny_checkpoint import compose_verb
from tiny_sd3_folder import write_tiny_sd3

from dit4sr import export
from dit4sr.models.checkpoint import read_checkpoint
from dit4sr.training.checkpoint_files import newest_valid, step_file


def configure(data: Path, *overrides: str, trainer: str = "fsdp") -> DictConfig:
    devices = 2 if trainer == "fsdp" else 1
    return compose_verb(
        "train", *FAST, f"trainer={trainer}", "trainer.accelerator=cpu", f"trainer.devices={devices}",
        "training.optimizer=adamw", f"paths.data={data}", "out=unused", *overrides,
    )  # fmt: skip


def said(out: Path) -> str:
    return out.with_suffix(".log").read_text()


def train(config: DictConfig, out: Path, ranks: int = 1, seconds: float = 400) -> int:
    """Train to the end; the worst exit status."""
    processes: list[BaseProcess] = start_ranks(config, out, ranks) if ranks > 1 else [start(config, out)]
    return wait(processes, out, seconds)


def wait(processes: list[BaseProcess], out: Path, seconds: float = 400) -> int:
    deadline = time.monotonic() + seconds
    for process in processes:
        process.join(max(0.1, deadline - time.monotonic()))
    hanging = [process for process in processes if process.is_alive()]
    for process in hanging:
        process.kill()
    assert not hanging, f"still running:\n{said(out)[-3000:]}"
    return max(abs(process.exitcode or 0) for process in processes)


def losses(out: Path) -> dict[int, float]:
    return {step: float(loss) for step, loss in rows(out).items()}


@pytest.mark.timeout(1500)
def test_two_processes_give_the_losses_of_one_and_any_number_goes_on(data: Path, tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    assert train(configure(data, "trainer.max_steps=6", trainer="cpu"), one) == 0, said(one)
    validated = ("callbacks.validate_every=2", "callbacks.validation_samples=1", "callbacks.checkpoint_every=3")
    assert train(configure(data, "trainer.max_steps=3", *validated), two, 2) == 0, said(two)
    checkpoint = step_file(two / "checkpoints", 3)
    assert checkpoint.is_dir() and (two / "checkpoints" / "last.ckpt").samefile(checkpoint)
    single = tmp_path / "single"
    shutil.copytree(two, single, symlinks=True)
    for out, ranks, trainer in ((two, 2, "fsdp"), (single, 1, "cpu")):
        assert train(configure(data, "trainer.max_steps=6", trainer=trainer), out, ranks) == 0, said(out)
        assert "resumed from" in said(out)
        assert losses(out) == pytest.approx(losses(one), rel=1e-5) and len(losses(out)) == 6
    averages = [read_checkpoint(out / "checkpoints" / "last.ckpt")["ema"] for out in (one, two, single)]
    for name, value in averages[0].items():
        for other in averages[1:]:
            assert torch.allclose(other[name], value, rtol=1e-4, atol=1e-5), name
    exported = compose_verb("export", f"out={tmp_path}/exported", "what=trainable")
    exported.ckpt = str(two)
    assert export.run(exported, {"ckpt"}) == 0
    (file,) = (tmp_path / "exported").glob("*.safetensors")
    assert {n: v.shape for n, v in load_file(file).items()} == {n: v.shape for n, v in averages[1].items()}


@pytest.mark.faults
@pytest.mark.timeout(1500)
def test_a_single_process_s_checkpoint_is_gone_on_from_sharded(data: Path, tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    assert train(configure(data, "trainer.max_steps=3", trainer="cpu"), two) == 0
    shutil.copytree(two, one)
    assert train(configure(data, "trainer.max_steps=6", trainer="cpu"), one) == 0
    assert train(configure(data, "trainer.max_steps=6"), two, 2) == 0, said(two)
    assert losses(two) == pytest.approx(losses(one), rel=1e-5) and len(losses(two)) == 6


@pytest.mark.faults
@pytest.mark.timeout(1500)
@pytest.mark.parametrize("frozen", ["sharded", "whole"])
def test_a_frozen_base_in_bfloat16_under_control_weights_in_float32(frozen: str, data: Path, tmp_path: Path) -> None:
    base = write_tiny_sd3(tmp_path / "base")
    settings = (
        "backbone=sd35_medium", f"backbone.pretrained={base}", "backbone.text_encoder.name=hashing",
        "backbone.crop=32", "trainer.precision=bf16-mixed", "training.batch_size=4",
        "training.gradient_checkpointing=true", "training.learning_rate=1e-3", "trainer.max_steps=4",
    )  # fmt: skip
    assert train(configure(data, *settings, trainer="cpu"), tmp_path / "one") == 0, said(tmp_path / "one")[-3000:]
    config = configure(data, *settings, f"trainer.frozen={frozen}", "trainer.micro_batch=1")
    assert train(config, tmp_path / "two", 2) == 0, said(tmp_path / "two")[-3000:]
    assert losses(tmp_path / "two") == pytest.approx(losses(tmp_path / "one"), rel=2e-3)
    kept = read_checkpoint(tmp_path / "two" / "checkpoints" / "last.ckpt")
    assert all("control" in name and value.dtype == torch.float32 for name, value in kept["ema"].items())
    assert kept["dit4sr"]["base"]["sha256"]


@pytest.mark.faults
@pytest.mark.timeout(1500)
def test_killed_inside_saving_and_a_damaged_shard(data: Path, tmp_path: Path) -> None:
    """What the kill leaves half written is removed; with a shard damaged the checkpoint before serves."""
    config, out = (
        configure(data, "trainer.max_steps=1000", "callbacks.checkpoint_every=2", "callbacks.keep_last=3"),
        tmp_path / "run",
    )
    folder = out / "checkpoints"
    processes = start_ranks(config, out, 2)
    deadline = time.monotonic() + 300
    while not (folder.is_dir() and len(list(folder.glob("step-*.ckpt"))) >= 2):
        assert time.monotonic() < deadline and processes[0].is_alive(), said(out)[-3000:]
        time.sleep(0.01)
    while not list(folder.glob(".step-*.ckpt")) and time.monotonic() < deadline:
        time.sleep(0.0005)
    for process in processes:
        os.killpg(process.pid or 0, signal.SIGKILL)
    wait(processes, out)
    newest = newest_valid(folder)
    assert newest is not None
    shard = sorted(newest.glob("shard-*"))[0]
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 4
    shard.write_bytes(content)
    before = newest_valid(folder, lambda line: None)
    assert before is not None and before != newest
    step = int(before.stem.partition("-")[2])
    config.trainer.max_steps = step + 3
    assert train(config, out, 2) == 0, said(out)[-3000:]
    assert f"{newest} is passed over" in said(out) and f"resumed from {before}" in said(out)
    assert not list(folder.glob(".*"))
    whole = tmp_path / "whole"
    config.trainer.max_steps = step + 3
    assert train(config, whole, 2) == 0
    assert rows(whole) == rows(out)


@pytest.mark.faults
@pytest.mark.timeout(900)
def test_a_full_disk_ends_all_processes_with_one_reason(data: Path, tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "none", disk], capture_output=True).returncode:
        pytest.skip("mounting a small file system is not permitted here")
    try:
        config = configure(data, "trainer.max_steps=60", "callbacks.checkpoint_every=2", "callbacks.keep_last=100")
        assert train(config, disk / "run", 2) != 0
        assert "could not be written" in said(disk / "run") and "is whole" in said(disk / "run"), said(disk / "run")
        folder = disk / "run" / "checkpoints"
        assert newest_valid(folder) is not None and not list(folder.glob(".*"))
    finally:
        subprocess.run(["umount", "-l", disk], check=True)


@pytest.mark.faults
@pytest.mark.timeout(900)
def test_told_to_stop_they_save_together(data: Path, tmp_path: Path) -> None:
    config, out = configure(data, "trainer.max_steps=100000"), tmp_path / "run"
    processes = start_ranks(config, out, 2)
    deadline = time.monotonic() + 300
    while max(rows(out), default=0) < 3:
        assert time.monotonic() < deadline and processes[0].is_alive(), said(out)[-3000:]
        time.sleep(0.05)
    os.kill(processes[1].pid or 0, signal.SIGTERM)
    wait(processes, out)
    assert "saved step" in said(out)
    assert newest_valid(out / "checkpoints") is not None

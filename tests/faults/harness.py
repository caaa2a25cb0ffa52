"""Training in a child process that can be killed at any moment, without importing torch anew each time."""

from __future__ import annotations

import csv
import multiprocessing
import os
import random
import signal
import socket
import sys
import time
from multiprocessing.process import BaseProcess
from pathlib import Path

import torch
from omegaconf import DictConfig

from dit4sr.training.run import train


def _train(config: DictConfig, out: Path) -> None:
    os.setsid()  # so that its data workers die with it
    log = os.open(out.with_suffix(".log"), os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, 1)
    os.dup2(log, 2)
    # The fork has inherited pytest's capturing streams, which write elsewhere.
    sys.stdout = sys.stderr = open(1, "w", buffering=1, encoding="utf-8", closefd=False)  # noqa: SIM115
    torch.set_num_threads(1)
    train(config, out)


def start(config: DictConfig, out: Path) -> BaseProcess:
    """Start a training in a fork of this process; it must not have used several torch threads before."""
    process = multiprocessing.get_context("fork").Process(target=_train, args=(config, out))
    process.start()
    return process


def _train_as(rank: int, ranks: int, port: int, config: DictConfig, out: Path) -> None:
    torchrun = {"TORCHELASTIC_RUN_ID": "test", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "GROUP_RANK": "0"}
    counted = {"WORLD_SIZE": ranks, "RANK": rank, "LOCAL_RANK": rank, "LOCAL_WORLD_SIZE": ranks}
    os.environ.update(torchrun | {name: str(number) for name, number in counted.items()})
    _train(config, out)


def start_ranks(config: DictConfig, out: Path, ranks: int) -> list[BaseProcess]:
    """Start a training in several forks of this process, which find each other as torchrun's do."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    fork = multiprocessing.get_context("fork")
    processes: list[BaseProcess] = [
        fork.Process(target=_train_as, args=(rank, ranks, port, config, out)) for rank in range(ranks)
    ]
    for process in processes:
        process.start()
    return processes


def rows(out: Path) -> dict[int, str]:
    """Step → loss as it stands in metrics.csv, at full precision."""
    path = out / "metrics.csv"
    if not path.is_file():
        return {}
    with path.open(newline="") as file:
        return {int(row["step"]): row["train/loss"] for row in csv.DictReader(file) if row.get("train/loss")}


def kill_when(process: BaseProcess, out: Path, step: int, delay: float) -> bool:
    """SIGKILL the training ``delay`` seconds after it has logged ``step``; whether it was still alive then."""
    deadline = time.monotonic() + 600
    while max(rows(out), default=0) < step and process.is_alive():
        if time.monotonic() > deadline:
            raise TimeoutError((out.with_suffix(".log")).read_text()[-2000:])
        time.sleep(0.002)
    time.sleep(delay)
    alive = process.is_alive()
    if alive and process.pid is not None:
        os.killpg(process.pid, signal.SIGKILL)
    process.join()
    return alive


def train_with_kills(config: DictConfig, out: Path, kills: int, rng: random.Random) -> list[int]:
    """Train to the end, killed ``kills`` times at random steps and moments; the steps that had been logged then."""
    killed_at: list[int] = []
    while len(killed_at) < kills:
        reached = max(rows(out), default=0)
        left = config.trainer.max_steps - reached
        per_kill = max(1, left // (kills - len(killed_at) + 1))
        process = start(config, out)
        if kill_when(process, out, reached + rng.randint(1, per_kill), rng.random() * 0.05):
            killed_at.append(max(rows(out), default=0))
        elif max(rows(out), default=0) >= config.trainer.max_steps:
            break
    process = start(config, out)
    process.join(600)
    assert process.exitcode == 0, out.with_suffix(".log").read_text()[-3000:]
    return killed_at

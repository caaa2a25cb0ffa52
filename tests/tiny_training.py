"""Trainings of a tiny network on the embedded photos, seconds long."""

from __future__ import annotations

import csv
from pathlib import Path

from omegaconf import DictConfig
from tiny_checkpoint import TINY, compose_verb

SHORT = (
    *TINY, "backbone.transformer.num_layers=1", "backbone.crop=32", "backbone.tile.size=8", "backbone.tile.overlap=2",
    "training.batch_size=4", "training.warmup_steps=2", "training.schedule=constant", "data.workers=0", "trainer=cpu",
    "trainer.max_steps=4", "trainer.log_every_n_steps=1", "callbacks=none", "callbacks.progress=false", "logger=csv",
    "out=unused",
)  # fmt: skip


def config_of(data: Path, *overrides: str) -> DictConfig:
    """The config of such a training.

    Args:
        data: folder with the embedded photos' shards (the fixture ``embedded``).
        overrides: of configs/train.yaml.
    """
    return compose_verb("train", *SHORT, f"paths.data={data}", *overrides)


def rows_of(out: Path, column: str) -> list[dict[str, str]]:
    """The rows of a run's metrics.csv that have a value in a column."""
    with (out / "metrics.csv").open(newline="") as file:
        return [row for row in csv.DictReader(file) if row.get(column)]

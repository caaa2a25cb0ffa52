"""Loggers: metrics.csv in the run's folder, and W&B with or without an account."""

from __future__ import annotations

import csv
import os
from argparse import Namespace
from collections.abc import Mapping
from netrc import NetrcParseError, netrc
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

from lightning.pytorch.loggers import Logger, WandbLogger
from lightning.pytorch.utilities import rank_zero_only

from dit4sr.files import write_atomically


class MetricsCSV(Logger):
    """``metrics.csv``: one row a logged step, ``step`` first, floats at full precision.

    A new metric adds a column (the file is then rewritten). On resuming, the rows of steps
    that will be run again are dropped.

    Args:
        path: of the file.
        resume_step: keep the rows of the file up to this step; None starts a new file.
    """

    def __init__(self, path: Path, resume_step: int | None = None) -> None:
        super().__init__()
        self.path = path
        self.columns = ["step"]
        self.rows: list[dict[str, str]] = []
        if resume_step is not None and path.is_file():
            with path.open(newline="") as file:
                reader = csv.DictReader(file)
                self.columns = list(reader.fieldnames or self.columns)
                self.rows = [row for row in reader if int(row["step"]) <= resume_step]

    @property
    def name(self) -> str:
        return "csv"

    @property
    def version(self) -> str:
        return ""

    @rank_zero_only
    def log_hyperparams(self, params: dict[str, Any] | Namespace, *args: Any, **kwargs: Any) -> None:
        """Nothing to do: config.yaml has them."""

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        row = {"step": str(step), **{k: repr(float(v)) for k, v in metrics.items() if k != "epoch"}}
        if self.rows and self.rows[-1]["step"] == row["step"]:
            self.rows[-1].update(row)
            self.columns += [k for k in row if k not in self.columns]
            self._rewrite()
            return
        self.rows.append(row)
        new = [k for k in row if k not in self.columns]
        self.columns += new
        if new or len(self.rows) == 1:
            self._rewrite()
        else:
            with self.path.open("a", newline="") as file:
                csv.DictWriter(file, self.columns, restval="").writerow(row)

    def _rewrite(self) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with write_atomically(self.path) as temporary, temporary.open("w", newline="") as file:
            writer = csv.DictWriter(file, self.columns, restval="")
            writer.writeheader()
            writer.writerows(self.rows)

    @rank_zero_only
    def save(self) -> None:
        """Every row is on disk already."""


def logged_in() -> bool:
    """Whether a W&B key is at hand, in the environment or in the netrc file (where ``wandb login`` puts it)."""
    if os.environ.get("WANDB_API_KEY"):
        return True
    host = urlparse(os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")).hostname
    try:
        return host is not None and netrc().authenticators(host) is not None
    except (OSError, NetrcParseError):
        return False


def wandb_logger(
    config: Mapping[str, Any], folder: Path, run_config: dict[str, Any], run_id: str
) -> WandbLogger | None:
    """W&B: online when logged in, offline otherwise (``wandb sync`` sends it later); None when disabled.

    Args:
        config: configs/logger, its ``wandb`` part.
        folder: of the run.
        run_config: nested; what the dashboard filters by.
        run_id: constant over restarts, so that a resumed run continues.
    """
    mode = config["mode"]
    if mode == "disabled":
        return None
    if mode == "auto":
        mode = os.environ.get("WANDB_MODE") or ("online" if logged_in() else "offline")
    os.environ.setdefault("WANDB_SILENT", "true")
    return WandbLogger(
        project=config["project"],
        name=config["name"],
        group=config["group"],
        job_type=config["job_type"],
        tags=list(config["tags"]),
        save_dir=folder,
        id=run_id,
        mode=mode,
        resume="allow" if mode == "online" else None,
        config=run_config,
        settings={"silent": True, "console": "off", "x_disable_stats": True},
    )

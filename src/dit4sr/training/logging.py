"""Loggers: metrics.csv in the run's folder, and W&B with or without an account."""

from __future__ import annotations

import csv
import os
import socket
import sys
from argparse import Namespace
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from netrc import NetrcParseError, netrc
from pathlib import Path
from typing import Any
from urllib.parse import urlparse
from urllib.request import getproxies

import lightning
from lightning.pytorch.loggers import Logger, WandbLogger
from lightning.pytorch.loggers.logger import rank_zero_experiment
from lightning.pytorch.utilities import rank_zero_only

from dit4sr.files import write_atomically
from dit4sr.helper_processes import deaf_to_signals
from dit4sr.provenance import git_revision
from dit4sr.training.checkpoint_files import BEST, LAST


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


def write_ahead(trainer: lightning.Trainer) -> None:
    """Have ``metrics.csv`` hold the loss of the step that has just ended, which Lightning logs a little later.

    For before a checkpoint is saved: it says that its step is done, so a run that is killed between the two would go on
    without that step's row. All ranks together.
    """
    loss = getattr(trainer.lightning_module, "step_loss", None)
    if loss is None or trainer.global_step % trainer.log_every_n_steps:  # type: ignore[attr-defined]
        return
    mean = float(trainer.strategy.reduce(loss.clone(), reduce_op="mean"))  # in place, and Lightning reduces it again
    for logger in trainer.loggers:
        if isinstance(logger, MetricsCSV):
            logger.log_metrics({"train/loss": mean}, trainer.global_step)


def logged_in() -> bool:
    """Whether a W&B key is at hand, in the environment or in the netrc file (where ``wandb login`` puts it)."""
    if os.environ.get("WANDB_API_KEY"):
        return True
    host = urlparse(os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")).hostname
    try:
        return host is not None and netrc().authenticators(host) is not None
    except (OSError, NetrcParseError):
        return False


def reachable(seconds: float = 5.0) -> bool:
    """Whether something answers at W&B's address; taken for granted behind a proxy."""
    address = urlparse(os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai"))
    if address.scheme in getproxies():
        return True
    try:
        port = address.port or (443 if address.scheme == "https" else 80)
        with socket.create_connection((address.hostname or "", port), timeout=seconds):
            return True
    except OSError:
        return False


def wandb_mode(asked: str) -> Any:
    """online, offline or disabled: ``auto`` is online when logged in; without a connection online becomes offline."""
    mode = asked
    if mode == "auto":
        mode = os.environ.get("WANDB_MODE") or ("online" if logged_in() else "offline")
    if mode == "online" and not reachable():  # wandb would try for a minute and a half, and then end the run
        print("warning: W&B cannot be reached: logging offline; wandb sync sends it later", file=sys.stderr)
        mode = "offline"
    return mode


class WandbSteps(WandbLogger):
    """W&B with ``step``, the steps completed, as the axis of every metric: it goes on where a resumed run does.

    Args:
        folder: of the run.
        log_model: keep the run's checkpoints as an artifact when it ends.
        arguments: of :class:`WandbLogger`.
    """

    def __init__(self, folder: Path, *, log_model: bool, **arguments: Any) -> None:
        super().__init__(save_dir=folder, **arguments)
        self.folder, self.keep_checkpoints = folder, log_model
        self._lost = False

    @property
    @rank_zero_experiment
    def experiment(self) -> Any:
        """The run; it begins when it is first asked for."""
        import wandb

        if self._experiment is None:
            with deaf_to_signals():
                self._experiment = wandb.init(**self._wandb_init)
            self._experiment.define_metric("step")
            self._experiment.define_metric("*", step_metric="step", step_sync=True)
        return self._experiment

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        named = {name: value for name, value in metrics.items() if name != "epoch"}
        experiment = self.experiment
        with self.dispensable():
            experiment.log(named if step is None else {**named, "step": step})

    @rank_zero_only
    def log_image(self, *args: Any, **kwargs: Any) -> None:
        with self.dispensable():
            super().log_image(*args, **kwargs)

    @contextmanager
    def dispensable(self) -> Iterator[None]:
        """Within the block an error of W&B's is told of once: what is logged is not worth the run."""
        try:
            yield
        except Exception as error:  # wandb's own, asyncio's, the network's
            if not self._lost:
                warn(f"W&B logs no more ({type(error).__name__}: {error}): metrics.csv goes on")
            self._lost = True

    @rank_zero_only
    def finalize(self, status: str) -> None:
        with self.dispensable():
            self._keep_checkpoints(status)

    def _keep_checkpoints(self, status: str) -> None:
        if self._experiment is None or not self.keep_checkpoints or status != "success":
            return
        import wandb

        files = [file for name in (LAST, BEST) if (file := self.folder / "checkpoints" / name).exists()]
        if not files:
            return
        artifact = wandb.Artifact(f"checkpoint-{self._experiment.id}", type="model")
        for file in files:
            if file.is_dir():  # of a sharded run
                artifact.add_dir(str(file), name=file.name)
            else:
                artifact.add_file(str(file), name=file.name)
        self._experiment.log_artifact(artifact, aliases=["latest"])


def warn(line: str) -> None:
    """Tell of something that training goes on after."""
    print(f"warning: {' '.join(line.split())}", file=sys.stderr)


def close_wandb() -> None:
    """End the W&B run, so that the next job of a sweep begins its own."""
    wandb = sys.modules.get("wandb")
    if wandb is not None and wandb.run is not None:
        try:
            wandb.finish()
        except Exception as error:  # its writer has ended, for one
            warn(f"the W&B run could not be closed ({type(error).__name__}: {error}); metrics.csv is whole")
            with suppress(Exception):  # else wandb would meet the same error at exit, and show all of it
                wandb.teardown()


def wandb_logger(
    config: Mapping[str, Any], folder: Path, run_config: dict[str, Any], run_id: str
) -> WandbLogger | None:
    """W&B: online when logged in, offline otherwise (``wandb sync`` sends it later); None when disabled.

    Args:
        config: configs/logger, its ``wandb`` part.
        folder: of the run.
        run_config: nested; what the dashboard filters by. The code's revision is added.
        run_id: constant over restarts, so that a resumed run continues.
    """
    if config["mode"] == "disabled":
        return None
    mode = wandb_mode(config["mode"])
    os.environ.setdefault("WANDB_SILENT", "true")
    return WandbSteps(
        folder,
        log_model=bool(config.get("log_model")),
        project=config["project"],
        name=config["name"],
        group=config["group"],
        job_type=config["job_type"],
        tags=list(config["tags"]),
        id=run_id,
        mode=mode,
        resume="allow" if mode == "online" else None,
        config={**run_config, "revision": git_revision()},
        settings={"silent": True, "console": "off", "x_disable_stats": True},
    )

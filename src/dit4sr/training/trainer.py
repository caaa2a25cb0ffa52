"""Lightning's Trainer with this project's callbacks, loggers and strategies."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import lightning
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from omegaconf import DictConfig

from dit4sr.errors import UserError
from dit4sr.models.flops import TrainingFlops, scale_of, step_flops
from dit4sr.training.callbacks import Checkpoints, StepProgress
from dit4sr.training.checkpoint_io import AtomicCheckpointIO
from dit4sr.training.data_report import DataReport
from dit4sr.training.distributed import build_strategy, count_devices
from dit4sr.training.guards import FiniteGradients, LossSpikes
from dit4sr.training.logging import MetricsCSV, wandb_logger
from dit4sr.training.monitoring import Monitor
from dit4sr.training.preemption import StopOnSignal
from dit4sr.training.utilisation import check_peak, peak_flops
from dit4sr.training.validation import HeldOutValidation


def build_trainer(
    config: DictConfig, out: Path, plain: dict[str, Any], resume_step: int | None, wandb_id: str
) -> lightning.Trainer:
    """Lightning's Trainer with this project's callbacks and loggers.

    Args:
        config: configs/train.yaml, composed.
        out: the run's folder.
        plain: the config as plain values, with the base's own architecture.
        resume_step: step at which the folder's run goes on; None for a new one.
        wandb_id: the run's id in W&B.

    Raises:
        UserError: for what Lightning refuses.
    """
    steps = config.trainer.max_steps
    loggers: list[Any] = []
    fast = config.debugging.fast_dev_run
    if config.logger.csv and not fast:
        loggers.append(MetricsCSV(out / "metrics.csv", resume_step))
    if not fast and (wandb := wandb_logger(plain["logger"]["wandb"], out, plain, wandb_id)):
        loggers.append(wandb)
    checkpoints = Checkpoints(
        out / "checkpoints", 0 if fast else config.callbacks.checkpoint_every, steps, config.callbacks.keep_last
    )
    callbacks: list[Any] = [FiniteGradients(config.callbacks.stop_after_skipped, out), LossSpikes(out)]
    callbacks.append(DataReport(min(config.trainer.log_every_n_steps, steps)))
    monitor = None if fast else build_monitor(plain, out)
    if monitor:
        callbacks.append(monitor)
    if config.callbacks.validate_every and config.callbacks.validation_samples:
        callbacks.append(
            HeldOutValidation(
                benchmark=Path(config.paths.data) / "embedded" / "benchmark",
                samples=config.callbacks.validation_samples,
                every=config.callbacks.validate_every,
                steps=1 if fast else steps,
                sampler=plain["sampler"],
                tile=plain["backbone"]["tile"],
                folder=out / "validation",
                checkpoints=None if fast else checkpoints,
            )
        )
    callbacks.append(checkpoints)  # after the validation, whose best loss it stores
    callbacks.append(StopOnSignal(checkpoints.save))
    if config.callbacks.progress:
        callbacks.append(StepProgress(1 if fast else steps, monitor))
    if monitor:
        callbacks.append(monitor.last)
    arguments: dict[str, Any] = dict(
        max_steps=steps,
        max_epochs=-1,
        accelerator=config.trainer.accelerator,
        devices=config.trainer.devices,
        num_nodes=config.trainer.num_nodes,
        strategy=build_strategy(plain, out),
        precision=config.trainer.precision,
        accumulate_grad_batches=config.trainer.accumulate_grad_batches,
        gradient_clip_val=config.trainer.gradient_clip_val,
        log_every_n_steps=min(config.trainer.log_every_n_steps, steps),  # a short run logs too
        deterministic=config.trainer.deterministic,
        detect_anomaly=config.debugging.detect_anomaly,
        fast_dev_run=fast,
        profiler=config.debugging.profiler,
        callbacks=callbacks,
        plugins=[AtomicCheckpointIO(background=config.callbacks.save_in_background)],
        logger=loggers or False,
        default_root_dir=out,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        limit_val_batches=0,
        use_distributed_sampler=False,
    )
    try:
        return lightning.Trainer(**arguments)
    except MisconfigurationException as error:  # more devices than there are, say
        raise UserError(f"trainer: {' '.join(str(error).split())}") from error


def build_monitor(config: Mapping[str, Any], out: Path) -> Monitor:
    """The monitor of a run, which counts its FLOPs when training starts.

    Args:
        config: configs/train.yaml, composed and resolved, with the base's own architecture.
        out: the run's folder.

    Raises:
        UserError: for a ``trainer.peak_flops`` that is none.
    """
    trainer, backbone = config["trainer"], config["backbone"]
    check_peak(trainer.get("peak_flops", "auto"))

    def flops() -> TrainingFlops:
        side, again = backbone["crop"] // scale_of(backbone), config["training"]["gradient_checkpointing"]
        return step_flops(config["model"], backbone, side, checkpointing=again)

    def peak(device: torch.device) -> float | None:
        here = count_devices(trainer["accelerator"], trainer["devices"])
        return peak_flops(device, str(trainer["precision"]), trainer.get("peak_flops", "auto"), here)

    every = min(trainer["log_every_n_steps"], trainer["max_steps"])
    return Monitor(out, config["data"]["batch_size"], every, flops, peak)

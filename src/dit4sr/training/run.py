"""The verb ``train``: from a config to a run folder with checkpoints, metrics and pictures."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig, OmegaConf

from dit4sr.errors import REQUEUE, Preempted, UserError
from dit4sr.training.checkpoint_files import newest_valid
from dit4sr.training.run_lock import locked

if TYPE_CHECKING:
    import lightning
    import torch


def run(config: DictConfig, explicit: set[str]) -> int:
    """Train, and evaluate if asked.

    Args:
        config: configs/train.yaml, composed.
        explicit: names of the settings that the command line set.

    Returns:
        0 when done.

    Raises:
        UserError: for a config or an input that the user can mend.
    """
    if config.plan:
        from dit4sr.training.plan import print_plan

        plain: dict[str, Any] = OmegaConf.to_container(config, resolve=True)  # type: ignore[assignment]
        print_plan(plain)
        return 0
    out = run_folder(config)
    try:
        checkpoint = train(config, out)
    except Preempted:
        return REQUEUE
    if config.evaluate and checkpoint is not None:
        from dit4sr.training.evaluate_after import evaluate_checkpoint

        return evaluate_checkpoint(config, checkpoint, out / "evaluation")
    return 0


def one_run(out: Path) -> AbstractContextManager[None]:
    """The lock on the run's folder, held by the first rank alone."""
    first = all(int(os.environ.get(name, 0)) == 0 for name in ("RANK", "LOCAL_RANK", "SLURM_PROCID"))
    return locked(out) if first else nullcontext()


def run_folder(config: DictConfig) -> Path:
    """The run's folder: ``out``; under a multirun a job's own folder in it."""
    from hydra.core.hydra_config import HydraConfig
    from hydra.types import RunMode

    sweep = HydraConfig.initialized() and HydraConfig.get().mode == RunMode.MULTIRUN
    return Path(HydraConfig.get().runtime.output_dir if sweep else config.out)


def train(config: DictConfig, out: Path) -> Path | None:
    """Train as ``config`` says, into ``out``.

    Returns:
        The last checkpoint; None for a run that saves nothing (fast_dev_run).

    Raises:
        Preempted: a signal asked the run to stop; it is saved.
    """
    check_inputs(config)
    with one_run(out):
        return fit(config, out, resume_from(config.resume, out))


def fit(config: DictConfig, out: Path, resume: Path | None) -> Path | None:
    """Train from ``resume`` on; see :func:`train`."""
    # Late: these take seconds to import, and a wrong path is known already.
    import lightning
    from lightning.pytorch.utilities import rank_zero_only

    quieten_lightning()
    from dit4sr.autoencoders import build_autoencoder
    from dit4sr.data.datamodule import SRDataModule
    from dit4sr.data.degradations import DegradationPreset
    from dit4sr.data.prepare import ensure_embedded
    from dit4sr.models.base import base_identity, check_crop, check_same_base, resolve_backbone
    from dit4sr.models.build import build_network
    from dit4sr.models.checkpoint import IDENTITY, check_same_model, read_checkpoint
    from dit4sr.prompts import PromptSettings, build_text_encoder
    from dit4sr.provenance import write_run_config
    from dit4sr.training.module import DiT4SRModule

    plain: dict[str, Any] = OmegaConf.to_container(config, resolve=True)  # type: ignore[assignment]
    # From here on the architecture is that of the base's own files, not of the config.
    plain["backbone"] = resolve_backbone(plain["backbone"])
    config = OmegaConf.merge(config, {"backbone": plain["backbone"]})  # type: ignore[assignment]
    base = base_identity(plain["backbone"])
    saved = None
    if resume is not None:
        saved = read_checkpoint(resume)
        check_same_model(resume, saved["dit4sr"], plain)
        check_same_base(resume, saved["dit4sr"].get("base"), base)
        if saved["global_step"] >= config.trainer.max_steps:
            print(f"{resume} has {saved['global_step']} steps already: nothing left to train")
            return resume

    lightning.seed_everything(config.seed, workers=True, verbose=False)
    preset = DegradationPreset.from_config(plain["degradation"])
    prompt = PromptSettings.from_config(plain.get("prompt"))
    if getattr(rank_zero_only, "rank", 0) == 0:  # the others find it when Lightning has let the first one through
        ensure_embedded(config.paths.data)

    trainer = build_trainer(config, out, plain, saved)
    refuse_distributed_sweep(trainer)
    batch, micro_batches = config.data.batch_size, trainer.world_size * config.trainer.accumulate_grad_batches
    if batch % micro_batches:
        raise UserError(
            f"data.batch_size={batch} cannot be split over {trainer.world_size} devices × "
            f"{config.trainer.accumulate_grad_batches} accumulation steps: choose a multiple of {micro_batches}"
        )
    backbone, local = plain["backbone"], bool(plain["backbone"].get("local_files_only"))
    module = DiT4SRModule(
        build_network(plain["model"], backbone, config.seed, dtype=base_dtype(backbone, config.trainer.precision)),
        build_autoencoder(backbone["autoencoder"], backbone["pretrained"], local_files_only=local),
        build_text_encoder(backbone["text_encoder"], backbone["pretrained"], prompt, local_files_only=local),
        plain["training"],
        steps=config.trainer.max_steps,
        seed=config.seed,
        identity={**{name: plain[name] for name in IDENTITY}, "base": base},
        fixed_prompt=prompt.fixed,
    )
    check_crop(backbone["crop"], module.autoencoder.scale, backbone["transformer"])
    data = SRDataModule(
        # Lightning asks for one micro-batch at a time.
        {**plain["data"], "batch_size": batch // config.trainer.accumulate_grad_batches},
        preset,
        seed=config.seed,
        crop=backbone["crop"],
        paths=plain["paths"],
        latent_scale=module.autoencoder.scale,
        repeat_first_batch=config.debugging.overfit,
    )
    data.start = 0 if saved is None else saved["global_step"] * batch
    if trainer.is_global_zero:
        write_run_config(out, config)
        describe(config, module, out, resume)
    trainer.fit(module, datamodule=data, ckpt_path=resume, weights_only=True)
    if trainer.interrupted:
        raise KeyboardInterrupt
    close_wandb()
    if any(getattr(callback, "stopped", False) for callback in trainer.callbacks):  # type: ignore[attr-defined]
        raise Preempted
    return None if config.debugging.fast_dev_run or not trainer.is_global_zero else out / "checkpoints" / "last.ckpt"


def base_dtype(backbone: Mapping[str, Any], precision: str) -> torch.dtype:
    """The type of a frozen base in training: as ``backbone.dtype`` says; auto is the type it computes in.

    The trained weights are in float32 in any case.

    Raises:
        UserError: for an unknown type.
    """
    import torch

    from dit4sr.models.base import dtype_named

    computed = next((t for p, t in (("bf16", torch.bfloat16), ("16", torch.float16)) if precision.startswith(p)), None)
    asked = dtype_named(backbone.get("dtype"))
    return asked or computed or torch.float32


def close_wandb() -> None:
    """End the W&B run, so that the next job of a sweep begins its own."""
    wandb = sys.modules.get("wandb")
    if wandb is not None and wandb.run is not None:
        wandb.finish()


def refuse_distributed_sweep(trainer: lightning.Trainer) -> None:
    """Refuse several processes under a multirun: each would run the whole sweep again.

    Raises:
        UserError: saying what to do instead.
    """
    from hydra.core.hydra_config import HydraConfig
    from hydra.types import RunMode

    if trainer.world_size > 1 and HydraConfig.initialized() and HydraConfig.get().mode == RunMode.MULTIRUN:
        raise UserError(
            f"a sweep cannot use {trainer.world_size} devices in one process: set trainer.devices=1, "
            "or start the jobs one by one"
        )


def quieten_lightning() -> None:
    """Leave out what Lightning says of devices and of itself; its import sets the level that is set here."""
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.ERROR)


def resume_from(resume: str, out: Path) -> Path | None:
    """The checkpoint to go on from: ``never`` none, ``auto`` the run folder's newest whole one, else the path given.

    Raises:
        UserError: where the path given does not exist.
    """
    if resume == "never":
        return None
    if resume == "auto":
        return newest_valid(out / "checkpoints", warn=lambda line: print(line, file=sys.stderr))
    if not Path(resume).is_file():
        raise UserError(f"resume={resume}: there is no such checkpoint; choose auto, never or the path of one")
    return Path(resume)


def check_inputs(config: DictConfig) -> None:
    """Refuse what is plainly wrong before anything heavy is imported.

    Raises:
        UserError: for a folder of shards or of a pretrained base that is not there.
    """
    from dit4sr.data.sources import check_sources

    check_sources(OmegaConf.to_container(config.data, resolve=True))  # type: ignore[arg-type]
    if base := config.backbone.pretrained:
        from dit4sr.pretrained import check_local

        check_local(base, "transformer")


def build_trainer(
    config: DictConfig, out: Path, plain: dict[str, Any], saved: dict[str, Any] | None
) -> lightning.Trainer:
    """Lightning's Trainer with this project's callbacks and loggers."""
    import lightning

    from dit4sr.training.callbacks import Checkpoints, StepProgress
    from dit4sr.training.checkpoint_io import AtomicCheckpointIO
    from dit4sr.training.data_report import DataReport
    from dit4sr.training.guards import FiniteGradients, LossSpikes
    from dit4sr.training.logging import MetricsCSV, wandb_logger
    from dit4sr.training.monitoring import Monitor
    from dit4sr.training.preemption import StopOnSignal
    from dit4sr.training.validation import HeldOutValidation

    steps = config.trainer.max_steps
    loggers: list[Any] = []
    fast = config.debugging.fast_dev_run
    if config.logger.csv and not fast:
        loggers.append(MetricsCSV(out / "metrics.csv", None if saved is None else saved["global_step"]))
    if not fast and (wandb := wandb_logger(plain["logger"]["wandb"], out, plain, wandb_run_id(out, config))):
        loggers.append(wandb)
    checkpoints = Checkpoints(
        out / "checkpoints", 0 if fast else config.callbacks.checkpoint_every, steps, config.callbacks.keep_last
    )
    callbacks: list[Any] = [FiniteGradients(config.callbacks.stop_after_skipped, out), LossSpikes(out)]
    callbacks.append(DataReport(min(config.trainer.log_every_n_steps, steps)))
    if not fast:
        callbacks.append(Monitor(out, config.data.batch_size, min(config.trainer.log_every_n_steps, steps)))
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
        callbacks.append(StepProgress(1 if fast else steps, config.data.batch_size, config.trainer.log_every_n_steps))
    return lightning.Trainer(
        max_steps=steps,
        max_epochs=-1,
        accelerator=config.trainer.accelerator,
        devices=config.trainer.devices,
        num_nodes=config.trainer.num_nodes,
        strategy=config.trainer.strategy,
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


def wandb_run_id(out: Path, config: DictConfig) -> str:
    """The same for every restart in the same folder, so that a resumed run continues in W&B."""
    import hashlib

    return hashlib.blake2b(f"{out.resolve()}/{config.seed}".encode(), digest_size=6).hexdigest()


def describe(config: DictConfig, module: Any, out: Path, resume: Path | None) -> None:
    """Say in a few lines what is about to happen."""
    from dit4sr.models.build import count_parameters

    count = count_parameters(module.network)
    print(
        f"{config.model.name} on {config.backbone.name}: {count.total / 1e6:.2f}M parameters, "
        f"{count.trainable / 1e6:.2f}M train"
        + (f", {count.unreachable / 1e6:.2f}M unreachable and frozen" if count.unreachable else "")
        + f"\n{config.trainer.max_steps} steps of {config.data.batch_size} crops of {config.backbone.crop} px, "
        f"degradation {config.degradation.name}, seed {config.seed}"
        + (f", resumed from {resume}" if resume else "")
        + f"\ninto {out}",
        file=sys.stderr,
    )

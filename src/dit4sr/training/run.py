"""The verb ``train``: from a config to a run folder with checkpoints, metrics and pictures."""

from __future__ import annotations

import logging
import os
import sys
import warnings
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig, OmegaConf

from dit4sr.errors import REQUEUE, Preempted, RankLost, UserError
from dit4sr.training.checks import check_devices, check_split, check_values
from dit4sr.training.requeue import leaving_on_signals
from dit4sr.training.resuming import check_same_run, resume_from, run_id
from dit4sr.training.run_lock import locked

if TYPE_CHECKING:
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
    plain: dict[str, Any] = OmegaConf.to_container(config, resolve=True)  # type: ignore[assignment]
    check_values(plain)
    if config.plan:
        from dit4sr.training.plan import print_plan

        print_plan(plain)
        return 0
    with leaving_on_signals():
        out = run_folder(config)
        try:
            checkpoint = train(config, out)
        except Preempted:
            return REQUEUE
        except RankLost as error:
            print(f"error: {error}", file=sys.stderr)
            return 1
        if config.evaluate and checkpoint is not None:
            from dit4sr.training.evaluate_after import evaluate_checkpoint

            for name in ("WORLD_SIZE", "RANK", "LOCAL_RANK"):  # torchrun's: the other processes have ended
                os.environ.pop(name, None)

            return evaluate_checkpoint(config, checkpoint, out / "evaluation")
        return 0


def one_run(out: Path) -> AbstractContextManager[None]:
    """The lock on the run's folder, held by the first rank alone."""
    first = all(int(os.environ.get(name, 0)) == 0 for name in ("RANK", "LOCAL_RANK", "SLURM_PROCID"))
    return locked(out) if first else nullcontext()


def run_folder(config: DictConfig) -> Path:
    """The run's folder: ``out``; under a multirun a job's own folder in it; among several processes the first's.

    Raises:
        UserError: processes that a launcher has started have no folder in common.
    """
    if told := os.environ.get("DIT4SR_RUN_FOLDER"):
        return Path(told)
    several = any(int(os.environ.get(name, 1)) > 1 for name in ("WORLD_SIZE", "SLURM_NTASKS"))
    if several and "${now:" in str(OmegaConf.to_container(config, resolve=False)["out"]):  # type: ignore[index, call-overload]
        raise UserError("with several processes the run needs a folder that all of them know: give out=<folder>")
    from hydra.core.hydra_config import HydraConfig
    from hydra.types import RunMode

    sweep = HydraConfig.initialized() and HydraConfig.get().mode == RunMode.MULTIRUN
    return Path(HydraConfig.get().runtime.output_dir if sweep else str(config.out))


def train(config: DictConfig, out: Path) -> Path | None:
    """Train as ``config`` says, into ``out``.

    Returns:
        The last checkpoint; None for a run that saves nothing (fast_dev_run).

    Raises:
        Preempted: a signal asked the run to stop; it is saved.
    """
    check_inputs(config)
    with one_run(out):
        return fit(config, out, resume_from(str(config.resume), out))


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
    from dit4sr.training.distributed import explained, leave_group, watch_parent
    from dit4sr.training.earlier_run import belongs_to, set_aside, set_later_aside
    from dit4sr.training.logging import close_wandb
    from dit4sr.training.memory import MemoryReport, held, micro_batch, predict, weights_of
    from dit4sr.training.module import DiT4SRModule
    from dit4sr.training.new_recipe import NewRecipe
    from dit4sr.training.trainer import build_trainer

    watch_parent()
    plain: dict[str, Any] = OmegaConf.to_container(config, resolve=True)  # type: ignore[assignment]
    # From here on the architecture is that of the base's own files, not of the config.
    plain["backbone"] = resolve_backbone(plain["backbone"])
    config = OmegaConf.merge(config, {"backbone": plain["backbone"]})  # type: ignore[assignment]
    base = base_identity(plain["backbone"])
    saved, new_recipe = None, False
    if resume is not None:
        read = read_checkpoint(resume, parts=(), verified=config.resume == "auto")
        saved = {"dit4sr": read["dit4sr"], "global_step": read["global_step"]}
        del read  # its weights are read again where they go
        check_same_model(resume, saved["dit4sr"], plain)
        check_same_base(resume, saved["dit4sr"].get("base"), base)
        new_recipe = check_same_run(resume, saved["dit4sr"], plain, allow=config.resume_changes)
        if saved["global_step"] >= config.trainer.max_steps:
            print(f"{resume} has {saved['global_step']} steps already: nothing left to train")
            return resume

    lightning.seed_everything(config.seed, workers=True, verbose=False)
    preset = DegradationPreset.from_config(plain["degradation"])
    prompt = PromptSettings.from_config(plain.get("prompt"))
    if getattr(rank_zero_only, "rank", 0) == 0:  # the others find it when Lightning has let the first one through
        ensure_embedded(config.paths.data)

    wandb_id = run_id(saved)
    goes_on = resume is not None and belongs_to(resume, out)
    trainer = build_trainer(config, out, plain, saved["global_step"] if saved and goes_on else None, wandb_id)
    batch, at_once = config.data.batch_size, micro_batch(plain, trainer.world_size)
    if config.trainer.micro_batch:
        trainer.accumulate_grad_batches = max(1, batch // (trainer.world_size * at_once))
    accumulated = trainer.accumulate_grad_batches
    check_split(batch, trainer.world_size, accumulated)
    backbone, local = plain["backbone"], bool(plain["backbone"].get("local_files_only"))
    module = DiT4SRModule(
        build_network(plain["model"], backbone, config.seed, dtype=base_dtype(backbone, config.trainer.precision)),
        build_autoencoder(backbone["autoencoder"], backbone["pretrained"], local_files_only=local),
        build_text_encoder(backbone["text_encoder"], backbone["pretrained"], prompt, local_files_only=local),
        plain["training"],
        steps=config.trainer.max_steps,
        seed=config.seed,
        identity={
            **{name: plain[name] for name in IDENTITY},
            "base": base,
            "run_id": wandb_id,
            "steps": config.trainer.max_steps,
        },
        fixed_prompt=prompt.fixed,
        average_on=average_on(config.trainer),
    )
    check_crop(backbone["crop"], module.autoencoder.scale, backbone["transformer"])
    data = SRDataModule(
        # Lightning asks for one micro-batch at a time.
        {**plain["data"], "batch_size": batch // accumulated},
        preset,
        seed=config.seed,
        crop=backbone["crop"],
        paths=plain["paths"],
        latent_scale=module.autoencoder.scale,
        repeat_first_batch=config.debugging.overfit,
    )
    prediction = predict(
        module.network, backbone, plain["training"], samples=at_once, half="16" in str(config.trainer.precision),
        others=weights_of(module.autoencoder) + weights_of(module.text_encoder),
        **held(plain["trainer"], trainer.world_size),
    )  # fmt: skip
    data.start = 0 if saved is None else saved["global_step"] * batch
    if trainer.is_global_zero:
        # The other processes look at nothing there before training begins.
        if not goes_on and not config.debugging.fast_dev_run and (earlier := set_aside(out)):
            print(f"a new run begins: what an earlier one has written into {out} is in {earlier} now", file=sys.stderr)
        if goes_on and config.resume != "auto":
            assert resume is not None and saved is not None
            if (earlier := set_later_aside(out, resume, saved["global_step"])) is not None:
                print(f"going on from {resume}: checkpoints of later steps are in {earlier} now", file=sys.stderr)
        write_run_config(out, config)
        describe(config, module, out, resume)
        print(f"peak memory of a step, predicted: {prediction.total / 2**30:.2f} GiB a device", file=sys.stderr)
    trainer.callbacks.append(MemoryReport(prediction))  # type: ignore[attr-defined]
    if new_recipe:
        trainer.callbacks.append(NewRecipe())  # type: ignore[attr-defined]
    with explained(trainer):
        trainer.fit(module, datamodule=data, ckpt_path=resume, weights_only=True)
    if trainer.interrupted:
        raise KeyboardInterrupt
    leave_group()
    close_wandb()
    if any(getattr(callback, "stopped", False) for callback in trainer.callbacks):  # type: ignore[attr-defined]
        raise Preempted
    return None if config.debugging.fast_dev_run or not trainer.is_global_zero else out / "checkpoints" / "last.ckpt"


def average_on(trainer: Mapping[str, Any]) -> str:
    """Where the averaged weights are, ``device`` or ``cpu``.

    Raises:
        UserError: for another value of ``trainer.average_on``, or where the average is sharded.
    """
    where = str(trainer.get("average_on", "device"))
    if where not in ("device", "cpu") or (where == "cpu" and trainer["strategy"] == "fsdp"):
        raise UserError(f"trainer.average_on={where}: choose device, or cpu (but not with trainer=fsdp)")
    return where


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


def quieten_lightning() -> None:
    """Leave out what Lightning says of devices and of itself; its import sets the level that is set here."""
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.ERROR)
    # Of 1×1 and depth-wise convolutions, whose strides are ambiguous; their copies cost nothing that shows.
    warnings.filterwarnings("ignore", message="Grad strides do not match bucket view strides")
    # Of sharded blocks, whose outputs nothing writes into.
    warnings.filterwarnings("ignore", message="FSDP2-wrapped module .* returned a view tensor")


def check_inputs(config: DictConfig) -> None:
    """Refuse what is plainly wrong before anything heavy is imported.

    Raises:
        UserError: for a value that means nothing, a folder of shards, of a pretrained base or of the benchmark that is
            not there, or a device that is not.
    """
    from dit4sr.data.degradations import DegradationPreset
    from dit4sr.data.sources import check_sources
    from dit4sr.prompts import PromptSettings
    from dit4sr.restoration.sampler_settings import SamplerSettings

    plain: dict[str, Any] = OmegaConf.to_container(config, resolve=True)  # type: ignore[assignment]
    check_values(plain)
    check_sources(plain["data"], Path(plain["paths"]["data"]) / "embedded" / "train")
    PromptSettings.from_config(plain.get("prompt"))
    DegradationPreset.from_config(plain["degradation"])
    SamplerSettings.from_config(plain["sampler"])
    check_devices(plain["trainer"])
    if base := config.backbone.pretrained:
        from dit4sr.pretrained import check_local

        check_local(base, "transformer")
    if config.evaluate:
        from dit4sr.training.evaluate_after import check_benchmark

        check_benchmark(config)


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

"""Kinds and ranges of a training's settings, in one table that is looked at before anything heavy is imported.

What depends on files, devices or other settings is refused where it is known; see :func:`dit4sr.training.run.train`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, get_args

from dit4sr import values
from dit4sr.data.sources import ENGINES, ORDERS
from dit4sr.errors import UserError
from dit4sr.models.spec import Injection
from dit4sr.models.variant import check_model_config, spec_of
from dit4sr.training import choices
from dit4sr.values import shown

Check = Callable[[Mapping[str, Any], str], Any]
"""Called with all settings by their full names, and the name of one."""


def whole(least: int, most: int | None = None) -> Check:
    return partial(values.whole_number, least=least, most=most)


def number(least: float = float("-inf"), most: float = float("inf")) -> Check:
    return partial(values.number, least=least, most=most)


def one_of(options: tuple[str, ...]) -> Check:
    return partial(values.one_of, options=options)


def positive(config: Mapping[str, Any], name: str) -> None:
    values.number(config, name, least=0)
    if config[name] == 0:
        raise UserError(f"{name}=0: give a number above 0")


def steps(config: Mapping[str, Any], name: str) -> None:
    """A number of steps. Lightning's -1 would train for ever; here schedule and checkpoints refer to the last one."""
    if config[name] == -1:
        raise UserError(f"{name}=-1: a run has an end here: give its steps; with a larger number later it goes on")
    values.whole_number(config, name, least=1)


def devices(config: Mapping[str, Any], name: str) -> None:
    """``auto``, a number of devices (-1 for all), or their indices, as a list or as text: ``0,3``."""
    value = config[name]
    parts = value.split(",") if isinstance(value, str) else value if isinstance(value, list) else [value]
    whole = [str(part).strip() for part in parts if not isinstance(part, bool | float)]
    listed = isinstance(value, list) or len(parts) > 1
    indices = all(part.isdecimal() for part in whole) and len(set(whole)) == len(whole)
    fits = indices if listed else whole == ["-1"] or (indices and whole != ["0"])
    if value != "auto" and not (whole and len(whole) == len(parts) and fits):
        raise UserError(
            f"{name}={shown(value)}: give auto, a number of devices of at least 1, or the devices' indices as in "
            f"'{name}=[0,3]'"
        )


def betas(config: Mapping[str, Any], name: str) -> None:
    value = config[name]
    if (
        not isinstance(value, list)
        or len(value) != 2
        or not all(isinstance(b, int | float) and 0 <= b < 1 for b in value)
    ):
        raise UserError(f"{name}={shown(value)}: give two numbers from 0 to below 1, as in '{name}=[0.9,0.999]'")


def compiled(config: Mapping[str, Any], name: str) -> None:
    if config[name] is not False and config[name] not in (None, *choices.COMPILED):
        raise UserError(f"{name}={shown(config[name])}: choose false, {' or '.join(choices.COMPILED)}")


def deterministic(config: Mapping[str, Any], name: str) -> None:
    if not isinstance(config[name], bool) and config[name] != "warn":
        raise UserError(f"{name}={shown(config[name])}: choose true, false or warn")


def resume(config: Mapping[str, Any], name: str) -> None:
    if not isinstance(config[name], str | int) or isinstance(config[name], bool) or config[name] == "":
        raise UserError(f"{name}={shown(config[name])}: choose auto, never or the path of a checkpoint")


def layers(config: Mapping[str, Any], name: str) -> None:
    value = config[name]
    if value is not None and not (
        isinstance(value, list) and all(type(layer) is int and layer >= 0 for layer in value)
    ):
        raise UserError(f"{name}={shown(value)}: give the numbers of layers from 0, as in '{name}=[0,1,2]'")


def or_null(check: Check) -> Check:
    """The same check, which null passes too."""
    return lambda config, name: None if config[name] is None else check(config, name)


flag, share = values.flag, number(0, 1)

SETTINGS: dict[str, Check] = {
    "seed": whole(0, 2**32 - 1),  # of Lightning's seed_everything
    "out": values.text,
    "resume": resume,
    "resume_changes": flag,
    "plan": flag,
    "evaluate": flag,
    "training.steps": steps,
    "training.batch_size": whole(1),
    "training.optimizer": one_of(choices.OPTIMIZERS),
    "training.learning_rate": number(0),
    "training.schedule": one_of(choices.SCHEDULES),
    "training.warmup_steps": whole(0),
    "training.betas": betas,
    "training.weight_decay": number(0),
    "training.gradient_clip": or_null(number(0)),
    "training.loss": one_of(choices.LOSSES),
    "training.shift": positive,
    "training.sigma_mean": number(),
    "training.sigma_std": number(0),
    "training.prompt_drop": share,
    "training.ema_decay": share,
    "training.precision": one_of(choices.PRECISIONS),
    "training.gradient_checkpointing": flag,
    "training.compile": compiled,
    "trainer.max_steps": steps,
    "trainer.accelerator": one_of(choices.ACCELERATORS),
    "trainer.devices": devices,
    "trainer.num_nodes": whole(1),
    "trainer.strategy": one_of(choices.STRATEGIES),
    "trainer.precision": one_of(choices.PRECISIONS),
    "trainer.accumulate_grad_batches": whole(1),
    "trainer.micro_batch": or_null(whole(1)),
    "trainer.average_on": one_of(("device", "cpu")),
    "trainer.gradient_clip_val": or_null(number(0)),
    "trainer.log_every_n_steps": whole(1),
    "trainer.deterministic": deterministic,
    "trainer.timeout_minutes": positive,
    "trainer.frozen": one_of(choices.FROZEN),
    "data.batch_size": whole(1),
    "data.workers": whole(0),
    "data.lanes": whole(1),
    "data.order": one_of(ORDERS),
    "data.shuffle_buffer": whole(1),
    "data.engine": one_of(ENGINES),
    "data.prompt_drop": share,
    "data.max_bad_share": share,
    "data.scale": whole(1),
    "data.cache_gb": positive,
    "data.retries": whole(0),
    "data.use_embedded_prompts": flag,
    "data.augmentation.margin": whole(0),
    "data.augmentation.turns": flag,
    "data.augmentation.recolour": share,
    "data.augmentation.invert": share,
    "callbacks.checkpoint_every": whole(0),
    "callbacks.validate_every": whole(0),
    "callbacks.validation_samples": whole(0),
    "callbacks.progress": flag,
    "callbacks.keep_last": whole(0),
    "callbacks.save_in_background": flag,
    "callbacks.stop_after_skipped": whole(1),
    "logger.csv": flag,
    "logger.wandb.mode": one_of(choices.WANDB_MODES),
    "debugging.detect_anomaly": flag,
    "debugging.fast_dev_run": flag,
    "debugging.overfit": flag,
    "debugging.profiler": or_null(one_of(choices.PROFILERS)),
    "backbone.crop": whole(1),
    "backbone.transformer.num_layers": whole(1),
    "backbone.transformer.patch_size": whole(1),
    "backbone.transformer.in_channels": whole(1),
    "backbone.transformer.out_channels": or_null(whole(1)),
    "backbone.transformer.attention_head_dim": whole(1),
    "backbone.transformer.num_attention_heads": whole(1),
    "backbone.transformer.joint_attention_dim": whole(1),
    "backbone.transformer.caption_projection_dim": whole(1),
    "backbone.transformer.pooled_projection_dim": whole(1),
    "backbone.transformer.pos_embed_max_size": whole(1),
    "backbone.transformer.dual_attention_layers": layers,
    "backbone.tile.size": whole(1),
    "backbone.tile.overlap": whole(0),
    "backbone.text_encoder.tokens": whole(1),
    "backbone.text_encoder.width": whole(1),
    "backbone.text_encoder.pooled_width": whole(1),
}


def check_values(config: Mapping[str, Any]) -> None:
    """Refuse values that no training can do anything with.

    Args:
        config: configs/train.yaml, composed and resolved, as plain values. What it leaves out is not looked at.

    Raises:
        UserError: naming the first such setting, and what may be given.
    """
    known = dict(_flat("", config))
    for name, check in SETTINGS.items():
        if name in known:
            check(known, name)
    model = config["model"]
    check_model_config(model)
    if "lr_injection" in model and model["lr_injection"] is None:  # which networks take for none; YAML's null is a slip
        raise UserError(f"model.lr_injection=null: choose one of {', '.join(get_args(Injection))}")
    if model["network"] == "dit4sr":
        spec_of(model)
    if not config["backbone"].get("pretrained"):  # else the base's own files say all that
        check_widths(known)
    if not known.get("trainer.micro_batch") and "data.batch_size" in known:  # else the run accumulates as it needs to
        stated = known.get("trainer.devices")
        devices = stated if type(stated) is int and stated > 0 else len(stated) if isinstance(stated, list) else 1
        nodes = known.get("trainer.num_nodes", 1)
        check_split(known["data.batch_size"], devices * nodes, known.get("trainer.accumulate_grad_batches", 1))


def check_split(batch: int, devices: int, accumulated: int) -> None:
    """Refuse a batch that cannot be cut into equal parts.

    Args:
        batch: samples of one optimiser step, of all devices together.
        devices: of all nodes together.
        accumulated: forward passes of one optimiser step.

    Raises:
        UserError: naming a multiple.
    """
    if batch % (parts := devices * accumulated):
        raise UserError(
            f"data.batch_size={batch} cannot be split over {devices} devices × {accumulated} accumulation steps: "
            f"choose a multiple of {parts}"
        )


def check_widths(known: Mapping[str, Any]) -> None:
    """Refuse a transformer whose widths do not fit each other, or the text encoder.

    Args:
        known: the settings by their full names.

    Raises:
        UserError: naming both settings.
    """
    of = "backbone.transformer."
    heads, width, projected = (
        known[of + n] for n in ("num_attention_heads", "attention_head_dim", "caption_projection_dim")
    )
    if heads * width != projected:
        raise UserError(
            f"{of}num_attention_heads={heads} × attention_head_dim={width} is {heads * width}: caption_projection_dim, "
            f"which is {projected}, must be the same"
        )
    if projected % 4:
        raise UserError(f"{of}caption_projection_dim={projected}: the table of positions needs a multiple of 4")
    for own, theirs in (("joint_attention_dim", "width"), ("pooled_projection_dim", "pooled_width")):
        if known[of + own] != known[f"backbone.text_encoder.{theirs}"]:
            raise UserError(
                f"{of}{own}={known[of + own]} must be backbone.text_encoder.{theirs}, which is "
                f"{known[f'backbone.text_encoder.{theirs}']}"
            )


def check_devices(trainer: Mapping[str, Any]) -> None:
    """Refuse a GPU where there is none; torch is imported only if the config asks for one.

    Raises:
        UserError: naming the setting.
    """
    accelerator, asked = trainer["accelerator"], trainer["devices"]
    picked = isinstance(asked, list) or str(asked) == "-1" or "," in str(asked)  # which are GPUs
    if accelerator == "cpu" and picked:
        raise UserError(f"trainer.devices={asked}: on the CPU give a number of processes, as in trainer.devices=1")
    if accelerator == "cpu" or (accelerator == "auto" and not picked):
        return
    import torch

    there = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if not there.get(accelerator, any(there.values())):
        what = f"trainer.devices={asked}" if accelerator == "auto" else f"trainer.accelerator={accelerator}"
        raise UserError(f"{what}: PyTorch finds no such GPU here: give trainer.accelerator=cpu trainer.devices=1")


def _flat(prefix: str, config: Mapping[str, Any]) -> list[tuple[str, Any]]:
    pairs = []
    for name, value in config.items():
        pairs.append((prefix + str(name), value))
        if isinstance(value, Mapping):
            pairs += _flat(f"{prefix}{name}.", value)
    return pairs

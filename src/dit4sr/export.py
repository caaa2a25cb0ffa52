"""The verb ``export``: a checkpoint as a folder in diffusers' layout, or its trained weights alone."""

from __future__ import annotations

import json
import os
import re
import shutil
import uuid
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig, OmegaConf

from dit4sr.errors import UserError
from dit4sr.files import check_folder, disk_errors
from dit4sr.restoration.checks import check_paths
from dit4sr.restoration.sampler_settings import SamplerSettings
from dit4sr.trained_runs import check_any_network, checkpoint_of
from dit4sr.values import flag

if TYPE_CHECKING:
    from dit4sr.models.checkpoint import TrainedModel

WHAT = ("full", "trainable")

FROZEN = {
    "vae": ["diffusers", "AutoencoderKL"],
    "text_encoder": ["transformers", "CLIPTextModelWithProjection"],
    "text_encoder_2": ["transformers", "CLIPTextModelWithProjection"],
    "text_encoder_3": ["transformers", "T5EncoderModel"],
    "tokenizer": ["transformers", "CLIPTokenizer"],
    "tokenizer_2": ["transformers", "CLIPTokenizer"],
    "tokenizer_3": ["transformers", "T5TokenizerFast"],
}
"""Components that are the base's own, with the classes that Stable Diffusion 3's model_index.json names."""

NEVER = (".bin", ".pt", ".pth", ".ckpt", ".msgpack", ".h5", ".onnx", ".pkl")
"""Files of a component that are left out: pickles, and formats that are not read here."""


def run(config: DictConfig, explicit: Collection[str] = ()) -> int:
    """Export as ``config`` says.

    Args:
        config: configs/export.yaml, composed.
        explicit: names of the settings that the command line set.

    Returns:
        0 when done.

    Raises:
        UserError: for a config or an input that the user can mend; then nothing is left behind.
    """
    plain: dict[str, Any] = OmegaConf.to_container(config, resolve=True)  # type: ignore[assignment]
    check(plain)
    out = Path(plain["out"]).expanduser()
    if out.is_file() or (out.is_dir() and any(out.iterdir()) and not plain["overwrite"]):
        raise UserError(f"out={out} is not empty: give another folder, or overwrite=true to replace it")
    check_folder(out)
    check_paths(plain)
    check_any_network(plain, explicit)
    export = export_full if plain["what"] == "full" else export_trainable
    with disk_errors(out), replaced(out) as folder:
        export(plain, explicit, folder)
    files = [path for path in sorted(out.rglob("*")) if path.is_file()]
    size = sum(path.stat().st_size for path in files)
    print(f"{plain['what']}: {len(files)} files, {size / 1e6:,.1f} MB, in {out}")
    return 0


def check(config: Mapping[str, Any]) -> None:
    """Refuse values that mean nothing, before anything heavy is imported.

    Raises:
        UserError: naming the setting.
    """
    if config["what"] not in WHAT:
        raise UserError(f"what={config['what']}: choose one of {', '.join(WHAT)}")
    if not re.fullmatch(r"[1-9]\d*[TGMK]B", str(config["max_shard_size"]).upper()):
        raise UserError(f"max_shard_size={config['max_shard_size']}: give a size such as 5GB or 500MB")
    flag(config, "link")
    flag(config, "overwrite")
    SamplerSettings.from_config(config["sampler"])
    if config["what"] == "trainable" and config["weights"] is not None:
        raise UserError("what=trainable exports what a run of train.py trained: give ckpt=… in place of weights=…")


@contextmanager
def replaced(out: Path) -> Iterator[Path]:
    """Yield a new folder beside ``out`` that takes its name at the end of the block; if it raises, ``out`` is kept."""
    out.parent.mkdir(parents=True, exist_ok=True)
    temporary, old = (out.with_name(f".{out.name}.{uuid.uuid4().hex[:12]}") for _ in range(2))
    temporary.mkdir()
    try:
        yield temporary
        if out.exists():
            out.rename(old)
        temporary.rename(out)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)


def export_trainable(config: Mapping[str, Any], explicit: Collection[str], folder: Path) -> None:
    """Write the averaged trained weights as they are in the checkpoint (float32), and what they belong to.

    Raises:
        UserError: where no checkpoint is given or found.
    """
    from safetensors.torch import save_file

    from dit4sr.models.checkpoint import read_checkpoint
    from dit4sr.restoration.weights import TRAINABLE

    path = checkpoint_of(config, explicit)
    checkpoint = read_checkpoint(path, ("ema",))
    weights = {name: value.detach().contiguous() for name, value in checkpoint["ema"].items()}
    save_file(weights, folder / TRAINABLE, metadata={"format": "pt"})
    write_note(folder, "trainable", checkpoint["dit4sr"], int(checkpoint["global_step"]))


def export_full(config: Mapping[str, Any], explicit: Collection[str], folder: Path) -> None:
    """Write a pipeline folder; the frozen components of a pretrained base are linked or copied, never loaded.

    Raises:
        UserError: see :func:`dit4sr.restoration.loading.load_model`.
    """
    from diffusers.utils import logging as diffusers_logging

    from dit4sr.restoration.loading import load_model, sampler_for, set_injection_scale

    trained = load_model(config, explicit)
    set_injection_scale(trained, config)
    sampler = sampler_for(config, trained.config, explicit)
    pipeline = pipeline_of(trained, sampler)
    before = diffusers_logging.get_verbosity()
    diffusers_logging.set_verbosity(diffusers_logging.CRITICAL)  # it misses the components that follow
    try:
        pipeline.save_pretrained(folder, max_shard_size=config["max_shard_size"])
    finally:
        diffusers_logging.set_verbosity(before)
    backbone = trained.config["backbone"]
    if backbone.get("pretrained"):
        add_frozen(folder, backbone, link=config["link"])
    settings = {**trained.config, "sampler": sampler}
    write_note(folder, "full", settings, trained.step, trained.base)


def pipeline_of(trained: TrainedModel, sampler: Mapping[str, Any]) -> Any:
    """The restoration pipeline, but for the frozen components of a pretrained base."""
    from diffusers import FlowMatchEulerDiscreteScheduler

    from dit4sr.autoencoders import build_autoencoder
    from dit4sr.prompts import build_text_encoder
    from dit4sr.restoration.pipeline import DiT4SRPipeline

    backbone = trained.config["backbone"]
    own: dict[str, Any] = {"vae": None}
    if not backbone.get("pretrained"):
        own = {
            "vae": build_autoencoder(backbone["autoencoder"], None),
            "text_encoder": build_text_encoder(backbone["text_encoder"], None),
        }
    return DiT4SRPipeline(
        transformer=trained.network,
        scheduler=FlowMatchEulerDiscreteScheduler(shift=sampler["shift"]),
        sampler=dict(sampler),
        tile=dict(backbone["tile"]),
        **own,
    )


def add_frozen(folder: Path, backbone: Mapping[str, Any], *, link: bool) -> None:
    """Add the base's autoencoder, text encoders and tokenizers, file by file, and name them in model_index.json."""
    from dit4sr.pretrained import component_folder, hub_folder

    base, source = Path(backbone["pretrained"]).expanduser(), backbone["autoencoder"].get("source")
    if not base.is_dir():
        parts = ["", *FROZEN]
        local = bool(backbone.get("local_files_only"))
        base = hub_folder(str(base), parts, local_files_only=local, hint="download it and set backbone.pretrained")
    index_file = folder / "model_index.json"
    index = json.loads(index_file.read_text(encoding="utf-8"))
    stated = {}
    if (base / "model_index.json").is_file():
        stated = json.loads((base / "model_index.json").read_text(encoding="utf-8"))
    for component, usual in FROZEN.items():
        origin = base / component
        if component == "vae":
            origin = Path(source) if source else component_folder(base, "vae")
        if origin.is_dir():
            copy_component(origin, folder / component, link=link)
            kind = stated.get(component) or usual
            index[component] = kind if all(kind) else usual
    index_file.write_text(json.dumps(index, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def copy_component(source: Path, target: Path, *, link: bool) -> None:
    """Link or copy a component's files: its configs, and of its weights those that are read."""
    from dit4sr.pretrained import weight_files

    target.mkdir(parents=True)
    weights: set[Path] | None = None
    if any(source.glob("*.safetensors")):
        weights = set(weight_files(source))
    for path in sorted(source.iterdir()):
        if not path.is_file() or path.name.startswith(".") or path.suffix in NEVER:
            continue
        if path.suffix == ".safetensors" and weights is not None and path not in weights:
            continue
        real, new = path.resolve(), target / path.name  # the hub's cache holds symbolic links
        if link and path.suffix == ".safetensors":
            try:
                os.link(real, new)
                continue
            except OSError:  # another file system, or one without hard links
                pass
        shutil.copyfile(real, new)


def write_note(
    folder: Path, what: str, config: Mapping[str, Any], step: int, base: Mapping[str, Any] | None = None
) -> None:
    """Write what an exported folder says of itself, see :data:`dit4sr.restoration.weights.NOTE`."""
    from dit4sr.restoration.weights import NOTE

    note = {"what": what, "step": step, "base": base or config.get("base"), "config": dict(config)}
    (folder / NOTE).write_text(json.dumps(note, indent=2, default=str) + "\n", encoding="utf-8")

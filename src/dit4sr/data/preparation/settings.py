"""The settings of `prepare`, checked: what the content follows from, and how the work is done."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from omegaconf import OmegaConf

from dit4sr.data.degradations import DegradationPreset
from dit4sr.errors import UserError
from dit4sr.helper_processes import cores

EMBEDDED = "embedded"
HUB = "hf:"
POLICIES = ("random", "grid", "centre")
PAYLOADS = ("png", "jpeg", "webp")
CONTENTS = ("hq", "paired", "paired_latent")
DUPLICATES = ("pixels", "bytes", "keep")
LATENT_DTYPES = ("float32", "bfloat16")
CAPTIONERS = ("beside", "folder", "llava", "fixed", "none")
DEFAULT_SCALES = {"random": (1.0, 0.8, 0.65, 0.5, 0.4), "grid": (1.0,), "centre": (1.0,)}
FLAT = 0.05
"""Default of ``min_gradient`` for one's own photos; the embedded ones are taken as they are."""
_HOW_NOT_WHAT = ("cache", "device", "local_files_only")  # of a captioner: where it runs, not what it says


@dataclass(frozen=True)
class HubSettings:
    """Which rows of a Hugging Face data set, and which of their columns; None lets the data set decide."""

    config: str | None = None
    split: str = "train"
    revision: str | None = None
    image: str | None = None
    caption: str | None = None
    streaming: bool = False


@dataclass(frozen=True)
class PrepareSettings:
    """What the content of a prepared folder follows from, besides the photos' own bytes.

    ``source`` is "embedded", an absolute path or glob, or "hf:<id or path>"; sizes are in pixels; see
    ``configs/prepare.yaml`` for each. ``backbone`` is None unless latents or embedded prompts are wanted.
    """

    source: str
    hf: HubSettings | None
    licence: str | None
    policy: str
    patch: int
    patches_per_photo: int
    grid_stride: int | None
    scales: tuple[float, ...]
    min_side: int
    min_gradient: float
    redraws: int
    duplicates: str
    payload: str
    quality: int
    content: str
    latent_dtype: str
    embed_prompts: bool
    samples_per_shard: int
    held_out: float
    benchmark_crop: int
    seed: int
    degradation: DegradationPreset
    captioner: Mapping[str, Any] = field(default_factory=lambda: {"name": "beside"})
    keep_captions: bool = True
    backbone: Mapping[str, Any] | None = None

    @classmethod
    def from_config(cls, cfg: Mapping[str, Any]) -> PrepareSettings:
        """Take the settings from the composed ``prepare.yaml``.

        Raises:
            UserError: a value is of another kind, or out of range.
        """
        policy = _choice(cfg, "policy", POLICIES)
        source = _source(cfg["source"])
        embedded = source == EMBEDDED
        gradient = cfg.get("min_gradient")
        if gradient is not None and not _within(gradient, 0, 6):
            raise UserError(f"min_gradient={gradient} must be a number from 0 to 6, or null.")
        if not _within(cfg["held_out"], 0, 1) or cfg["held_out"] == 1:
            raise UserError(f"held_out={cfg['held_out']} must be in [0, 1).")
        content = _choice(cfg, "content", CONTENTS)
        embed_prompts = _truth(cfg, "embed_prompts")
        patch = _whole(cfg, "patch", 1)
        settings = cls(
            source=source,
            hf=_hub(_plain(cfg.get("hf")) or {}) if source.startswith(HUB) else None,
            licence=None if cfg.get("licence") is None else str(cfg["licence"]),
            policy=policy,
            patch=patch,
            patches_per_photo=_whole(cfg, "patches_per_photo", 1),
            grid_stride=None if cfg.get("grid_stride") is None else _whole(cfg, "grid_stride", 1),
            scales=_scales(cfg.get("scales"), policy),
            min_side=_whole(cfg, "min_side", 0),
            min_gradient=float(gradient if gradient is not None else (0.0 if embedded else FLAT)),
            redraws=_whole(cfg, "redraws", 0),
            duplicates=_choice(cfg, "duplicates", DUPLICATES),
            payload=_choice(cfg, "payload", PAYLOADS),
            quality=_whole(cfg, "quality", 1, 100),
            content=content,
            latent_dtype=_choice(cfg, "latent_dtype", LATENT_DTYPES),
            embed_prompts=embed_prompts,
            samples_per_shard=_whole(cfg, "samples_per_shard", 1),
            held_out=float(cfg["held_out"]),
            benchmark_crop=_whole(cfg, "benchmark_crop", 4),
            seed=_whole(cfg, "seed", 0),
            degradation=DegradationPreset.from_config(cfg["degradation"]),
            captioner=_captioner(_plain(cfg.get("captioner")) or {"name": "beside"}),
            keep_captions=_truth(cfg, "keep_captions"),
            backbone=_backbone(cfg) if content == "paired_latent" or embed_prompts else None,
        )
        if settings.benchmark_crop % 4:
            raise UserError(f"benchmark_crop={settings.benchmark_crop} must be a multiple of 4.")
        if content != "hq" and patch % 4:
            raise UserError(f"patch={patch} must be a multiple of 4 where LQ images are made (content={content}).")
        return settings

    @property
    def name(self) -> str:
        """What the folder of the shards is called where ``out`` does not say it."""
        if self.source.startswith(HUB):
            return re.sub(r"[^\w.-]+", "_", self.source.removeprefix(HUB).rstrip("/").rpartition("/")[2]) or "hub"
        fixed = re.split(r"/[^/]*[*?\[{]", self.source, maxsplit=1)[0]
        name = os.path.basename(fixed.rstrip("/"))
        return name.removesuffix(".tar") or "photos"

    @property
    def photos_per_unit(self) -> int:
        """Photos that are prepared as one unit of work: enough for one shard, where none is skipped."""
        patches = 1 if self.policy == "centre" else self.patches_per_photo
        return max(1, -(-self.samples_per_shard // patches))

    def identity(self) -> dict[str, Any]:
        """All that the content depends on, as JSON has it."""
        facts = asdict(self)
        facts["captioner"] = {k: value for k, value in self.captioner.items() if value and k not in _HOW_NOT_WHAT}
        return dict(json.loads(json.dumps(facts)))

    def fingerprint(self) -> str:
        """A hash of `identity`, 64 hex digits."""
        return hashlib.sha256(json.dumps(self.identity(), sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True)
class Execution:
    """How the work is done, which changes nothing of the result.

    ``part`` of ``parts`` takes every parts-th unit of work; ``merge`` only puts finished parts together.
    """

    processes: int = 1
    part: int = 0
    parts: int = 1
    merge: bool = False
    overwrite: bool = False
    device: str = "auto"
    memo: str | None = None

    @property
    def whole(self) -> bool:
        """Whether this run ends with the finished folder."""
        return self.parts == 1

    @classmethod
    def from_config(cls, cfg: Mapping[str, Any]) -> Execution:
        """Take them from the composed ``prepare.yaml``.

        Raises:
            UserError: a value is of another kind, or out of range.
        """
        part, parts = 0, 1
        if cfg.get("part") is not None:
            found = re.fullmatch(r"(\d+)/(\d+)", str(cfg["part"]))
            part, parts = (int(found[1]), int(found[2])) if found else (0, 0)
            if not part < parts:
                raise UserError(f"part={cfg['part']} must be i/n with 0 <= i < n, for example part=0/8.")
        merge = _truth(cfg, "merge")
        if merge and cfg.get("part") is not None:
            raise UserError("merge=true puts all parts together: leave part= out.")
        processes = _whole(cfg, "processes", 0)
        paths = cfg.get("paths") or {}
        device = str(cfg.get("device") or "auto")
        if not re.fullmatch(r"auto|cpu|mps|(cuda|xpu)(:\d+)?", device):
            raise UserError(f"device={device}: choose auto, cpu, cuda or cuda:<number>.")
        return cls(
            processes=processes or cores(),
            part=part,
            parts=parts,
            merge=merge,
            overwrite=_truth(cfg, "overwrite"),
            device=device,
            memo=str(paths["cache"]) if paths.get("cache") else None,
        )


def _source(value: Any) -> str:
    source = str(value)
    if value is None or not source:
        raise UserError("source is empty: pass a folder, a glob, tar shards, hf:<id>, or embedded.")
    if source == EMBEDDED:
        return source
    if source.startswith(HUB):
        name = source.removeprefix(HUB)
        if not name:
            raise UserError("source=hf: names no data set: write hf:<user>/<name>, or hf:<path>.")
        local = os.path.abspath(os.path.expanduser(name))
        return HUB + (local if os.path.exists(local) or name.startswith(("/", "~", ".")) else name)
    if source.startswith("pipe:"):
        raise UserError(f"source={source}: pipe: runs a shell command and is refused; give a path.")
    if "://" in source and not source.startswith("file://"):
        raise UserError(f"source={source}: photos are read from local paths or from hf:<id>; copy them here first.")
    return os.path.abspath(os.path.expanduser(source.removeprefix("file://")))


def _scales(value: Any, policy: str) -> tuple[float, ...]:
    if value is None:
        return DEFAULT_SCALES[policy]
    is_list = isinstance(value, Sequence) and not isinstance(value, str)
    if not is_list or not value or not all(_within(scale, 0, 1) and scale for scale in value):
        raise UserError(f"scales={value} must be a list of numbers in (0, 1].")
    if len(set(value)) < len(value):
        raise UserError(f"scales={value} names a scale twice.")
    return tuple(float(scale) for scale in value)


def _hub(value: Mapping[str, Any]) -> HubSettings:
    if unknown := sorted(set(value) - set(HubSettings.__dataclass_fields__)):
        raise UserError(f"hf has no {', '.join(unknown)}; it has {', '.join(HubSettings.__dataclass_fields__)}.")
    streaming = value.get("streaming", False)
    if not isinstance(streaming, bool):
        raise UserError(f"hf.streaming={streaming} must be true or false.")
    texts = {key: None if text is None else str(text) for key, text in value.items() if key != "streaming"}
    texts["split"] = texts.get("split") or "train"
    return HubSettings(**texts, streaming=streaming)  # type: ignore[arg-type]


def _captioner(value: Mapping[str, Any]) -> dict[str, Any]:
    if value.get("name") not in CAPTIONERS:
        raise UserError(f"captioner={value.get('name')}: choose one of {', '.join(CAPTIONERS)}.")
    if value["name"] == "folder" and not os.path.isdir(os.path.expanduser(str(value.get("path")))):
        raise UserError(f"captioner.path={value.get('path')} is not a folder: pass one of <stem>.txt files.")
    if value["name"] == "fixed" and not isinstance(value.get("prompt"), str):
        raise UserError('captioner=fixed needs captioner.prompt="…".')
    return dict(value)


def _backbone(cfg: Mapping[str, Any]) -> dict[str, Any]:
    value = _plain(cfg.get("backbone"))
    if not value:
        raise UserError("latents and embedded prompts are a backbone's: pass backbone=<name>.")
    return {name: value.get(name) for name in ("name", "pretrained", "autoencoder", "text_encoder")}


def _plain(value: Any) -> Any:
    return OmegaConf.to_container(value, resolve=True) if OmegaConf.is_config(value) else value


def _choice(cfg: Mapping[str, Any], name: str, among: Sequence[str]) -> str:
    if cfg[name] not in among:
        raise UserError(f"{name}={cfg[name]}: choose one of {', '.join(among)}.")
    return str(cfg[name])


def _truth(cfg: Mapping[str, Any], name: str) -> bool:
    if not isinstance(cfg[name], bool):
        raise UserError(f"{name}={cfg[name]} must be true or false.")
    return cfg[name]


def _whole(cfg: Mapping[str, Any], name: str, low: int, high: int | None = None) -> int:
    value = cfg[name]
    if not isinstance(value, int) or isinstance(value, bool) or value < low or (high is not None and value > high):
        span = f"of at least {low}" if high is None else f"from {low} to {high}"
        raise UserError(f"{name}={value} must be a whole number {span}.")
    return value


def _within(value: Any, low: float, high: float) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and low <= value <= high

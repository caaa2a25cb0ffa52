"""Complexity: parameters, FLOPs, memory and seconds of every model, beside the published table.

Parameters and FLOPs come from the meta device, so the full-size models need no weights and no memory. Seconds and
peak memory are those of 128 -> 512 pixels with 40 steps, measured here with random weights: on a GPU for all
backbones, on a CPU for those trained from scratch.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from dit4sr.errors import UserError
from dit4sr.studies.command import Request, run_study, setting, write_csv, write_text

if TYPE_CHECKING:
    import torch

    from dit4sr.studies.counting import Count
    from dit4sr.studies.timing import Timing

UPSCALE = 4


@dataclass
class Settings:
    """Settings of the study."""

    models: list[str] = setting("names of configs/model; [] for all", [])
    backbones: list[str] = setting("names of configs/backbone", ["nano", "small", "sd35_medium"])
    target: int = setting("pixels of the restored image's side", 512)
    steps: int = setting("Euler steps", 40)
    guidance: float = setting("of classifier-free guidance; 1 halves the work", 8.0)
    latency: str = setting("auto (a GPU: all; a CPU: what is trained from scratch), all, or none", "auto")
    timed_steps: int | None = setting(
        "steps that are run for the seconds, the rest extrapolated; null: all on a GPU, 1 on a CPU", None
    )
    tile_batch: int = setting("latent tiles of one forward pass", 32)
    device: str = setting("auto, cpu, cuda, …", "auto")
    out: str | None = setting("folder of the results", None)


@dataclass(frozen=True)
class Entry:
    """A row: one model on one backbone."""

    model: str
    backbone: str
    count: Count
    timing: Timing | None


def main(arguments: list[str] | None = None) -> int:
    """The study's command line."""
    return run_study("complexity", __doc__ or "", Settings, study, arguments)


def study(request: Request) -> int:
    """Write table.csv and table.md, and print the latter."""
    s: Settings = request.settings
    check(s)
    models, backbones = read_configs("model", s.models), read_configs("backbone", s.backbones)

    from dit4sr.restoration.loading import resolve_device
    from dit4sr.studies.counting import count, work_of
    from dit4sr.studies.timing import device_name

    device = resolve_device(s.device)
    entries = []
    for backbone in backbones:
        work = work_of(backbone, target=s.target, steps=s.steps, guidance=s.guidance)
        for model in models:
            counted = count(model, backbone, work)
            entries.append(Entry(model["name"], backbone["name"], counted, measure(model, backbone, device, s)))
            print(f"{model['name']} on {backbone['name']} done", flush=True)
    table = table_text(entries, device_name(device), s)
    write_text(request.out / "table.md", table)
    write_csv(request.out / "table.csv", table_rows(entries, device_name(device), s))
    print("\n" + table)
    print("\n".join(str(request.out / name) for name in ("table.md", "table.csv")))
    return 0


def check(s: Settings) -> None:
    """Refuse settings that cannot be measured.

    Raises:
        UserError: naming the setting.
    """
    if s.latency not in ("auto", "all", "none"):
        raise UserError(f"latency={s.latency}: choose auto, all or none")
    if s.target < UPSCALE * 4 or s.target % 16:
        raise UserError(f"target={s.target}: give a multiple of 16 pixels")
    for name in ("steps", "timed_steps", "tile_batch"):
        value = getattr(s, name)
        if value is not None and value < 1:
            raise UserError(f"{name}={value}: give 1 or more")
    if s.timed_steps is not None and s.timed_steps > s.steps:
        raise UserError(f"timed_steps={s.timed_steps}: an image has {s.steps}")


def read_configs(group: str, names: list[str]) -> list[dict[str, Any]]:
    """Configs of a group as plain values; all of the group for no names.

    Raises:
        UserError: for a name that is none.
    """
    from omegaconf import OmegaConf

    from dit4sr.config import config_dir

    files = {path.stem: path for path in sorted((config_dir() / group).glob("*.yaml"))}
    if unknown := [name for name in names if name not in files]:
        raise UserError(f"{group}s: there is no {group} {', '.join(unknown)}; choose among {', '.join(files)}")
    configs = [OmegaConf.to_container(OmegaConf.load(files[name]), resolve=True) for name in (names or list(files))]
    return configs  # type: ignore[return-value]


def measure(model: dict[str, Any], backbone: dict[str, Any], device: torch.device, s: Settings) -> Timing | None:
    """Time one image, or None where that is not asked for."""
    import torch

    from dit4sr.studies.timing import time_image

    on_cpu = device.type == "cpu"
    if s.latency == "none" or (s.latency == "auto" and on_cpu and backbone["pretrained"]):
        return None
    timed = s.timed_steps or (1 if on_cpu else s.steps)
    try:
        return time_image(
            model,
            backbone,
            device,
            target=s.target,
            steps=s.steps,
            timed_steps=timed,
            guidance=s.guidance,
            tile_batch=s.tile_batch if not backbone["pretrained"] else 1,
        )
    except torch.OutOfMemoryError:
        torch.cuda.empty_cache()
        print(f"{model['name']} on {backbone['name']}: not enough GPU memory, not measured")
        return None


def table_rows(entries: list[Entry], device: str, s: Settings) -> list[dict[str, Any]]:
    """table.csv: measured and counted rows first, then those that the paper reports."""
    from dit4sr.evaluation.published import SOURCES, read_published

    rows: list[dict[str, Any]] = []
    for e in entries:
        timing = asdict(e.timing) if e.timing else {}
        rows.append(
            {
                "method": e.model,
                "backbone": e.backbone,
                "source": "counted and measured here" if e.timing else "counted here",
                "parameters": e.count.total,
                "trainable": e.count.trainable,
                "parameters_paper": e.count.paper,
                "flops_forward": e.count.forward,
                "flops_step": e.count.step,
                "flops_coding": e.count.coding,
                "flops_image": e.count.image,
                "steps": s.steps,
                "seconds": timing.get("seconds"),
                "timed_steps": timing.get("timed_steps"),
                "peak_mib": timing.get("peak_mib"),
                "device": device if e.timing else None,
            }
        )
    empty = dict.fromkeys(rows[0])
    for row in read_published("complexity"):
        rows.append(
            empty
            | {
                "method": row["method"],
                "backbone": row["base_model"],
                "source": f"reported: {SOURCES['complexity']}",
                "parameters_paper": round(float(row["params_m"]) * 1e6),
                "steps": int(row["steps"]),
                "seconds": float(row["seconds_a100_512"]),
                "device": "A100 80 GB",
            }
        )
    return rows


def table_text(entries: list[Entry], device: str, s: Settings) -> str:
    """table.md: ours, the paper's, and what they depend on."""
    from dit4sr.evaluation.published import SOURCES, read_published

    head = [
        "| model | backbone | parameters | trainable | paper's accounting | forward | step | image | seconds | peak |",
        "|---|---|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    ours = [
        f"| {e.model} | {e.backbone} | {millions(e.count.total)} | {millions(e.count.trainable)} "
        f"| {millions(e.count.paper)} | {flops(e.count.forward)} | {flops(e.count.step)} | {flops(e.count.image)} "
        f"| {seconds(e.timing)} | {mebibytes(e.timing)} |"
        for e in entries
    ]
    reported = [
        f"| {row['method']} | {row['base_model'] or '–'} | {row['params_m']}M | {row['steps']} "
        f"| {row['seconds_a100_512']} s |"
        for row in read_published("complexity")
    ]
    source = s.target // UPSCALE
    extrapolated = any(e.timing and e.timing.timed_steps < e.timing.steps for e in entries)
    facts = [
        f"one image {source}×{source} → {s.target}×{s.target}, {s.steps} steps, guidance {s.guidance:g}; "
        "FLOPs: a multiply-add counts 2, matrix products and convolutions alone",
        "forward: one pass over one tile; step: all tiles, and both passes of guidance; image: all steps, encoding and "
        "decoding, without the text encoders",
        "paper's accounting: with the text projections inside the dual attention (122.76M at full size), which the "
        "released checkpoints carry and no forward pass reads",
        f"seconds and peak memory: random weights, {device}"
        + ("; CPU memory is the whole process's" if device and any(e.timing for e in entries) else "")
        + ("; ≈: extrapolated from fewer steps, as table.csv says" if extrapolated else "")
        + ("; –: not measured" if any(e.timing is None for e in entries) else ""),
    ]
    return "\n".join(
        [
            "Counted and measured here:",
            "",
            *head,
            *ours,
            "",
            *(f"- {fact}" for fact in facts),
            "",
            f"Reported ({SOURCES['complexity']}; A100 80 GB, 128×128 → 512×512), not measured here:",
            "",
            "| method | base model | parameters | steps | time |",
            "|---|---|---:|---:|---:|",
            *reported,
        ]
    )


def millions(number: int) -> str:
    """In millions, two decimals, as published."""
    return f"{number / 1e6:.2f}M"


def flops(number: int) -> str:
    """With a prefix and three or four digits."""
    for unit, size in (("P", 1e15), ("T", 1e12), ("G", 1e9)):
        if number >= size:
            return f"{number / size:.2f} {unit}FLOP"
    return f"{number / 1e6:.1f} MFLOP"


def seconds(timing: Timing | None) -> str:
    """Seconds of an image; ≈ where steps were extrapolated."""
    if timing is None:
        return "–"
    return f"{'≈ ' if timing.timed_steps < timing.steps else ''}{timing.seconds:.2f}"


def mebibytes(timing: Timing | None) -> str:
    """Peak memory."""
    return "–" if timing is None or timing.peak_mib is None else f"{timing.peak_mib:.0f} MiB"

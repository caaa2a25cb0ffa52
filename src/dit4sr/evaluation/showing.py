"""What is shown of an evaluation: the comparison picture, and W&B's table with pictures."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dit4sr.data.images import Image8, UnreadableImage, read_image
from dit4sr.evaluation.benchmarks import BenchmarkImage
from dit4sr.evaluation.methods import Bicubic, Task
from dit4sr.evaluation.pictures import SheetRow, write_sheet
from dit4sr.evaluation.reporting import Evaluation, values_of
from dit4sr.evaluation.restored import mean_file, mean_name, quantise, restored_file
from dit4sr.evaluation.tables import summarise
from dit4sr.provenance import git_revision

PICTURES = "pictures"


@dataclass(frozen=True, eq=False)
class Example:
    """What is shown of one image."""

    name: str
    lq: Image8
    bicubic: Image8
    restored: Image8
    mean: Image8 | None
    truth: Image8 | None


def examples(out: Path, found: Evaluation, count: int) -> list[Example]:
    """That many of the measured images, spread evenly, read from their files."""
    measured = set(found.results.images)
    images = [image for image in found.benchmark.images if image.name in measured]
    count = min(count, len(images))
    chosen = [images[i * len(images) // count] for i in range(count)]
    return [example for image in chosen if (example := _example(out, found, image)) is not None]


def _example(out: Path, found: Evaluation, image: BenchmarkImage) -> Example | None:
    settings, seed = found.settings, found.settings.seeds[0]
    try:
        lq = read_image(image.lq)
        restored = read_image(restored_file(out, settings, image.name, seed))
        mean_path = mean_file(out, settings, image.name, seed)
        mean = read_image(mean_path) if settings.samples > 1 and mean_path.is_file() else None
        truth = None if image.hq is None else read_image(image.hq)
    except (UnreadableImage, OSError):
        return None
    return Example(image.name, lq, quantise(Bicubic().restore([Task(image, lq, 0)])[0]), restored, mean, truth)


def write_comparison(path: Path, shown: list[Example], found: Evaluation) -> None:
    """comparison.png: input, bicubic, restored, the mean of the samples and ground truth, where there are such."""
    if not shown:
        return
    method, samples, benchmark = found.method, found.settings.samples, found.benchmark
    names = {"bicubic": Bicubic().name, "restored": method.name, "mean": mean_name(method.name, samples)}
    columns = {"lq": "input (LR)", "bicubic": "bicubic"}
    if method.name != Bicubic().name:
        columns["restored"] = f"{method.name}, one sample" if samples > 1 else method.name
    if all(example.mean is not None for example in shown):
        columns["mean"] = f"mean of {samples} samples"
    if all(example.truth is not None for example in shown):
        columns["truth"] = "ground truth"
    values = values_of(found.results.rows)
    rows = [
        SheetRow(
            example.name,
            [getattr(example, column) for column in columns],
            [_caption(values, example, column, names.get(column)) for column in columns],
        )
        for example in shown
    ]
    title = f"{method.name} on {benchmark.name}, ×{benchmark.upscale:g}"
    note = "PSNR and SSIM of the whole image" + ("; of single samples, the mean over all" if samples > 1 else "")
    write_sheet(path, rows, list(columns.values()), title=title, note=note if benchmark.has_ground_truth else "")


def log_to_wandb(out: Path, found: Evaluation, shown: list[Example], config: Mapping[str, Any]) -> None:
    """A W&B run with the means (``benchmark/<name>/<metric>``), every image's values, and pictures of some.

    Online when logged in, offline otherwise (``wandb sync`` sends it later).

    Args:
        config: configs/logger, its ``wandb`` part.
    """
    import wandb

    from dit4sr.training.logging import wandb_mode

    if config["mode"] == "disabled":
        return
    benchmark, method = found.benchmark, found.method
    run = wandb.init(
        project=config["project"],
        name=f"{benchmark.name}-{method.name}-seed{found.config['seed']}",
        group=config["group"],
        job_type="evaluate",
        tags=list(dict.fromkeys([*config["tags"], benchmark.name, method.name])),
        dir=str(out),
        mode=wandb_mode(config["mode"]),
        config={**found.config, "revision": git_revision()},
        settings=wandb.Settings(silent=True, console="off", x_disable_stats=True),
    )
    try:
        metrics = [m.name for m in found.metrics.metrics]
        for name, statistic in summarise(found.results.rows).get(method.name, {}).items():
            run.summary[f"benchmark/{benchmark.name}/{name}"] = statistic.mean
            if (variation := found.results.variation.get(method.name, {}).get(name)) is not None:
                run.summary[f"benchmark/{benchmark.name}/{name}_std_over_{variation.over}"] = variation.statistic.std
        for value in found.of_sets:
            run.summary[f"benchmark/{benchmark.name}/{value.metric}"] = value.value
        run.summary[f"benchmark/{benchmark.name}/seconds_per_image"] = found.results.seconds_per_image
        values = values_of(found.results.rows)
        methods = list(dict.fromkeys(row.method for row in found.results.rows))
        table = wandb.Table(columns=["image", "method", *metrics])
        for name in found.results.images:
            for who in methods:
                table.add_data(name, who, *(_cell(values.get((name, who, m))) for m in metrics))
        kinds = [k for k in ("lq", "bicubic", "restored", "mean", "truth") if _all_have(shown, k)]
        titles = {"lq": "input", "truth": "ground truth"}
        pictures = wandb.Table(columns=["image", *(titles.get(k, k) for k in kinds), *metrics])
        for example in shown:
            images = [wandb.Image(getattr(example, kind)) for kind in kinds]
            pictures.add_data(
                example.name, *images, *(_cell(values.get((example.name, method.name, m))) for m in metrics)
            )
        logged: dict[str, Any] = {
            f"benchmark/{benchmark.name}/per_image": table,
            f"benchmark/{benchmark.name}/{PICTURES}": pictures,
        }
        if (out / "comparison.png").is_file():
            logged[f"benchmark/{benchmark.name}/comparison"] = wandb.Image(str(out / "comparison.png"))
        run.log(logged)
    finally:
        run.finish()


def _all_have(shown: list[Example], kind: str) -> bool:
    return bool(shown) and all(isinstance(getattr(example, kind), np.ndarray) for example in shown)


def _cell(value: float | None) -> float | None:
    return None if value is None or math.isnan(value) else value


def _caption(values: Mapping[tuple[str, str, str], float], example: Example, column: str, method: str | None) -> str:
    if column in ("lq", "truth"):
        image = getattr(example, column)
        return f"{image.shape[1]}×{image.shape[0]}"
    psnr, ssim = (values.get((example.name, str(method), metric)) for metric in ("psnr", "ssim"))
    parts = [] if psnr is None or math.isnan(psnr) else [f"{psnr:.2f} dB"]
    return " · ".join(parts if ssim is None or math.isnan(ssim) else [*parts, f"SSIM {ssim:.3f}"])

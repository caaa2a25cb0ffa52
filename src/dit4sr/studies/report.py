"""A sweep's page: ``report.html``, one file that opens from disk, needs no connection and stays below 10 MB."""

from __future__ import annotations

import base64
import csv
import html
import io
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import OmegaConf

from dit4sr.files import write_atomically
from dit4sr.studies.sweep import Job, Unfinished
from dit4sr.studies.sweep_job import WITHOUT_EFFECT, flat

if TYPE_CHECKING:
    from dit4sr.data.images import Image8

TEMPLATE = Path(__file__).with_name("report_page.html")
PICTURES = 6
SIDE = 512
"""Pixels of a shown picture's longer side; of larger ones the most detailed region is shown."""
PICTURE_BYTES = 6_500_000
"""Of all pictures together, base64 included: the rest of a page is far below 1 MB."""
CURVES = ("train/loss", "val/loss", "val/psnr", "train/learning_rate", "gradient/base")
CURVE_POINTS = 400


def write_page(path: Path, jobs: list[Job], unfinished: list[Unfinished], facts: Sequence[str]) -> None:
    """Write the page of a sweep.

    Args:
        path: of the page.
        jobs: the evaluated ones, by model and seed.
        unfinished: the others, which are listed.
        facts: what the numbers depend on.
    """
    benchmark = jobs[0].summary["benchmark"]
    content = {
        "facts": list(facts),
        "unfinished": [str(job) for job in unfinished],
        "models": list(dict.fromkeys(job.model for job in jobs)),
        "curves": curves(jobs),
        "table": table(jobs),
        "differences": differences(jobs),
        "complexity": complexity(jobs),
        "pictures": encoded_pictures(jobs),
    }
    # "</" would end the script that holds it.
    data = json.dumps(content, ensure_ascii=False, allow_nan=False).replace("</", "<\\/").replace("<!--", "<\\!--")
    title = html.escape(f"Ablation on {benchmark['name']}, {jobs[0].config.backbone.name}")
    page = TEMPLATE.read_text(encoding="utf-8").replace("{{title}}", title).replace("{{data}}", data)
    with write_atomically(path) as temporary:
        temporary.write_text(page, encoding="utf-8")


def curves(jobs: list[Job]) -> dict[str, list[dict[str, Any]]]:
    """Quantity → a line for each job: its model, seed and points [step, value]; long ones are thinned."""
    found: dict[str, list[dict[str, Any]]] = {}
    for job in jobs:
        try:
            with (job.folder / "metrics.csv").open(newline="", encoding="utf-8") as file:
                rows = list(csv.DictReader(file))
        except OSError:  # logger.csv=false
            continue
        for name in CURVES:
            points = [(int(row["step"]), float(row[name])) for row in rows if row.get(name)]
            points = [point for point in points if math.isfinite(point[1])]
            if points:
                every = -(-len(points) // CURVE_POINTS)
                thinned = points[::every] if points[-1] in points[::every] else [*points[::every], points[-1]]
                found.setdefault(name, []).append({"model": job.model, "seed": job.seed, "points": thinned})
    return found


def interval(values: Sequence[float]) -> float | None:
    """Half the width of the 95 % interval of the mean (Student's t); None for fewer than two values."""
    from scipy import stats

    n = len(values)
    if n < 2:
        return None
    mean = math.fsum(values) / n
    deviation = math.sqrt(math.fsum((v - mean) ** 2 for v in values) / (n - 1))
    return float(stats.t.ppf(0.975, n - 1)) * deviation / math.sqrt(n)


def image_means(jobs: list[Job], method: str, metric: str) -> dict[str, float]:
    """Image → mean over the jobs' seeds; images without a value are left out."""
    values: dict[str, list[float]] = {}
    for job in jobs:
        for row in job.rows:
            if row.method == method and row.metric == metric and math.isfinite(row.value):
                values.setdefault(row.image, []).append(row.value)
    return {image: math.fsum(v) / len(v) for image, v in values.items()}


def table(jobs: list[Job]) -> dict[str, Any]:
    """The table: for each model and metric the mean, the deviation over the seeds, the 95 % interval over the images,
    and the mean difference from the first model with its interval, image by image."""
    from dit4sr.evaluation.tables import places
    from dit4sr.studies.ablation import BASELINE, columns_of, models_of, over_seeds

    columns, values = columns_of(jobs), over_seeds(jobs)
    reference = models_of(jobs)[0]
    rows = []
    for model, statistics in values.items():
        own = jobs[:1] if model == BASELINE else [job for job in jobs if job.model == model]
        cells: dict[str, Any] = {}
        for c in columns:
            s = statistics.get(c.name)
            if s is None or not math.isfinite(s.mean):
                continue
            images = image_means(own, model, c.name)
            first = image_means([job for job in jobs if job.model == reference], reference, c.name)
            paired = [images[name] - first[name] for name in images if name in first]
            cells[c.name] = {
                "mean": s.mean,
                "deviation": None if s.n < 2 else s.std,
                "interval": interval(list(images.values())),
                "difference": math.fsum(paired) / len(paired) if paired and model != reference else None,
                "difference_interval": interval(paired) if model != reference else None,
            }
        rows.append({"model": model, "seeds": 0 if model == BASELINE else len(own), "cells": cells})
    means = {c.name: {m: s[c.name].mean for m, s in values.items() if m != BASELINE and c.name in s} for c in columns}
    ranked = {c.name: places(means[c.name], c) for c in columns}
    return {
        "columns": [{"name": c.name, "better": c.better, "digits": c.digits} for c in columns],
        "rows": rows,
        "places": ranked,
        "reference": reference,
    }


def differences(jobs: list[Job]) -> list[dict[str, Any]]:
    """Settings in which the models' configs differ: name, and the value of each model."""
    from dit4sr.studies.ablation import one_per_model

    configs: dict[str, dict[str, Any]] = {}
    for job in one_per_model(jobs):
        plain: dict[str, Any] = OmegaConf.to_container(job.config)  # type: ignore[assignment]
        configs[job.model] = flat(plain)
    return differing(configs)


def differing(configs: dict[str, dict[str, Any]]) -> list[dict[str, Any]]:
    """Settings, flat, that are not the same in all configs; those without effect are left out."""
    names = list(dict.fromkeys(name for config in configs.values() for name in config))
    names = [name for name in names if not any(f"{name}.".startswith(f"{w}.") for w in WITHOUT_EFFECT)]
    found = []
    for name in names:
        values = {who: config.get(name, "–") for who, config in configs.items()}
        if len({json.dumps(v, default=str) for v in values.values()}) > 1:
            found.append({"name": name, "values": {who: _shown(value) for who, value in values.items()}})
    return found


def _shown(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, default=str)


def complexity(jobs: list[Job]) -> list[dict[str, Any]]:
    """Parameters and FLOPs of each model, counted without weights; and the seconds of its training."""
    from dit4sr.studies.ablation import one_per_model
    from dit4sr.studies.counting import count, work_of

    rows = []
    for job in one_per_model(jobs):
        plain: dict[str, Any] = OmegaConf.to_container(job.config)  # type: ignore[assignment]
        backbone, sampler = plain["backbone"], plain["sampler"]
        target = int(backbone["crop"])
        work = work_of(backbone, target=target, steps=int(sampler["steps"]), guidance=float(sampler["guidance"]))
        counted = count(plain["model"], backbone, work)
        rows.append(
            {
                "model": job.model,
                "total": counted.total,
                "trainable": counted.trainable,
                "forward": counted.forward,
                "image": counted.image,
                "target": target,
                "seconds": job.record.seconds,
            }
        )
    return rows


def encoded_pictures(jobs: list[Job]) -> list[dict[str, Any]]:
    """Some images: name, size, and a data address for each of LR, baseline, models and HR.

    Lossless where the page's size allows, else as WebP of a lower quality, and fewer where that is not enough.
    """
    from dit4sr.studies.ablation import one_per_model, pictures

    shown = [(name, cropped(images)) for name, images in pictures(one_per_model(jobs), PICTURES)]
    if not shown:
        return []

    def encoded(images: dict[str, Image8], quality: int | None) -> dict[str, str]:
        return {method: address(image, quality) for method, image in images.items()}

    qualities: list[int | None] = [None, 95, 85, 70, 40]
    # The first image's pictures tell what all will need.
    while len(qualities) > 1 and len(shown) * _bytes(encoded(shown[0][1], qualities[0])) > PICTURE_BYTES:
        del qualities[0]
    found: list[dict[str, Any]] = []
    left = PICTURE_BYTES
    for name, images in shown:
        methods = encoded(images, qualities[0])
        left -= _bytes(methods)
        if left < 0:
            break
        height, width = images[next(reversed(images))].shape[:2]
        found.append({"name": name, "height": height, "width": width, "methods": methods})
    return found


def _bytes(methods: dict[str, str]) -> int:
    return sum(map(len, methods.values()))


def address(image: Image8, quality: int | None) -> str:
    """A picture as a data address: PNG, or WebP of a quality."""
    from PIL import Image

    buffer = io.BytesIO()
    if quality is None:
        Image.fromarray(image).save(buffer, "PNG")
    else:
        Image.fromarray(image).save(buffer, "WEBP", quality=quality, method=4)
    kind = "png" if quality is None else "webp"
    return f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode()}"


def cropped(images: dict[str, Image8]) -> dict[str, Image8]:
    """The pictures of one image, of the same region: the most detailed one of :data:`SIDE` pixels where it is larger.

    The LR picture, which comes first, is enlarged by repeating pixels, so that all have one size.
    """
    from dit4sr.evaluation.pictures import enlarge, most_detailed_region

    last = images[next(reversed(images))]  # HR where there is one
    height, width = last.shape[:2]
    same = {name: enlarge(image, height, width) for name, image in images.items()}
    if max(height, width) <= SIDE:
        return same
    h, w = min(height, SIDE), min(width, SIDE)
    y, x = most_detailed_region(last, h, w)
    return {name: image[y : y + h, x : x + w].copy() for name, image in same.items()}

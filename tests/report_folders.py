"""Folders as evaluate.py leaves them, with values from formulas: what reports are made of."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from dit4sr.evaluation.reports.content import BenchmarkTable
from dit4sr.evaluation.reports.merging import Options, merge
from dit4sr.evaluation.reports.runs import find_runs
from dit4sr.evaluation.tables import Row, summarise, write_rows

QUICK = Options(resamples=200)

GIVEN = ["runs/ours_*", "runs/controlnet", "OSEDiff & co.=runs/osediff", "runs/lq250"]
"""The golden report's runs, as :func:`write_runs` makes them in ``runs``."""

IMAGES = [f"Canon_{i:03d}" for i in range(1, 13)]

METRICS = {
    "psnr": ("ycbcr", "Y", "", "255"),
    "ssim": ("ycbcr", "Y", "Gaussian window 11, σ 1.5", "255"),
    "lpips": ("default", "RGB", "AlexNet v0.1", ""),
    "musiq": ("default", "RGB", "KonIQ-10k", ""),
}
SCALE = {"psnr": 1.0, "ssim": 0.03, "lpips": -0.04, "musiq": 4.0}

BICUBIC = {"psnr": 26.9, "ssim": 0.75, "lpips": 0.46, "musiq": 33.2}
OURS = {"psnr": 23.6, "ssim": 0.66, "lpips": 0.32, "musiq": 67.9}
BASELINE = {"psnr": 24.2, "ssim": 0.69, "lpips": 0.31, "musiq": 62.7}
OTHER = {"psnr": 25.1, "ssim": 0.73, "lpips": 0.29, "musiq": 69.1}


def wave(metric: str, mean: float, image: int, phase: float) -> float:
    """A value that differs from image to image, and from method to method by its phase."""
    return round(mean + SCALE.get(metric, 1.0) * (math.sin(1.7 * image) + 0.4 * math.cos(2.3 * image + phase)), 6)


def write_run(
    folder: Path,
    method: str,
    means: dict[str, float],
    *,
    phase: float = 0.0,
    benchmark: str = "realsr",
    seeds: Sequence[int] = (0,),
    images: Sequence[str] = IMAGES,
    facts: dict[str, Any] | None = None,
    protocol: str = "ycbcr",
    bicubic: dict[str, float] | None = None,
    value: Callable[[str, float, int, float], float] = wave,
    **summary: Any,
) -> Path:
    """One evaluation: of ``method``, whose means are about ``means``, and of the bicubic baseline."""
    rows = []
    baseline = BICUBIC if bicubic is None else bicubic
    rowed = [("bicubic", {k: baseline[k] for k in means if k in baseline}, 0.0)]
    if method != "bicubic":
        rowed.append((method, means, phase))
    for name in images:
        # Of the name, not of the place: fewer images leave the others' values as they are.
        number = int(name[-3:])
        for who, wanted, shift in rowed:
            for seed in seeds:
                moved = shift + 0.9 * seed * (who != "bicubic")
                for metric, mean in wanted.items():
                    own, channel, variant, data_range = METRICS.get(metric, ("default", "RGB", "", ""))
                    stated = protocol if own == "ycbcr" else own
                    rows.append(
                        Row(
                            name,
                            who,
                            metric,
                            value(metric, mean, number, moved),
                            stated,
                            channel if stated == own else protocol.upper(),
                            0,
                            "0.1.16",
                            seed,
                            variant=variant,
                            data_range=data_range,
                        )
                    )
    folder.mkdir(parents=True, exist_ok=True)
    write_rows(folder / "per_image.csv", rows)
    statistics = summarise(rows)
    content: dict[str, Any] = {
        "benchmark": {"name": benchmark, "upscale": 4.0, "lq": "LR", "hq": "HR", "notes": []},
        "method": {"name": method, **(facts or {})},
        "metrics": {},
        "missing": [],
        "methods": {who: {m: vars(s) for m, s in found.items()} for who, found in statistics.items()},
        "variation": {},
        "of_sets": [],
        "settings": {"seeds": list(seeds), "metrics_only": False},
        "seconds_per_image": 5.25,
        "peak_memory_bytes": 9 * 2**30,
        "skipped": [],
        "versions": {"pyiqa": "0.1.16"},
        "revision": "0123456789ab",
        **summary,
    }
    (folder / "summary.json").write_text(json.dumps(content))
    return folder


def checkpoint(seed: int = 0, **changes: Any) -> dict[str, Any]:
    """What a summary states of a network of ours."""
    return {
        "ckpt": f"outputs/train/{seed}/last.ckpt",
        "step": 1000,
        "training_seed": seed,
        "sampler": {"steps": 40, "guidance": 8.0},
        "device": "cuda",
        **changes,
    }


def write_runs(folder: Path) -> None:
    """The runs of the golden report: two trained seeds of ours, a baseline, another method's images, two benchmarks."""
    for seed in (0, 1):
        write_run(folder / f"ours_{seed}", "dit4sr", OURS, phase=0.5 + seed, facts=checkpoint(seed))
    write_run(folder / "controlnet", "sd3_controlnet", BASELINE, phase=2.0, facts=checkpoint(step=900), of_sets=[])
    write_run(
        folder / "osediff",
        "osediff_realsr",
        OTHER,
        phase=3.0,
        facts={"path": "results/osediff_realsr"},
        missing=[{"metric": "niqe", "reason": "its weights are not here", "files": []}],
    )
    write_run(
        folder / "lq250",
        "dit4sr",
        {"musiq": 71.8, "liqe": 4.3},
        benchmark="reallq250",
        bicubic={"musiq": 35.0, "liqe": 1.2},
        facts=checkpoint(),
        seeds=(0, 1, 2),
    )


def merged(*folders: Any, options: Options = QUICK) -> list[BenchmarkTable]:
    """The tables of some folders."""
    return merge(find_runs([str(folder) for folder in folders]), options)


def entry(table: BenchmarkTable, label: str) -> Any:
    """The measured row of that label."""
    return next(e for e in table.entries if e.label == label)


def values(table: BenchmarkTable, metric: str) -> dict[str, float]:
    """Label → mean of a metric that has one column."""
    (measure,) = [m for m in table.measures if m.metric == metric]
    return {e.label: e.cells[measure].value for e in table.entries if measure in e.cells}

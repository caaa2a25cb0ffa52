"""What an evaluation leaves behind: rows, summary, table, picture, and a few lines on the terminal."""

from __future__ import annotations

import csv
import json
import math
import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from dit4sr.evaluation.benchmarks import Benchmark
from dit4sr.evaluation.methods import Method
from dit4sr.evaluation.metrics import Metric, MetricSet, pyiqa_version
from dit4sr.evaluation.restored import Settings, mean_name, shuffled_name
from dit4sr.evaluation.results import Results, Timing
from dit4sr.evaluation.tables import (
    Column,
    Row,
    Statistic,
    Summary,
    markdown_table,
    summarise,
    write_parquet,
    write_rows,
)
from dit4sr.files import write_atomically
from dit4sr.provenance import git_revision

PACKAGES = ("dit4sr", "torch", "diffusers", "pyiqa", "torchmetrics", "spandrel", "numpy", "pillow")


@dataclass(frozen=True)
class SetValue:
    """A metric of the whole set of restored images."""

    metric: str
    method: str
    value: float
    n: int
    warning: str | None


@dataclass(frozen=True)
class Evaluation:
    """Everything that a report is made of.

    Attributes:
        metrics: those that were computed, those that could not be.
        not_applicable: metrics that need a ground truth, on a benchmark without one.
        of_sets: FID, where it was asked for.
        peak_memory: bytes, of the process that needed most: on a GPU its allocations, on the CPU all of its memory.
        config: the run's.
    """

    benchmark: Benchmark
    method: Method
    metrics: MetricSet
    results: Results
    settings: Settings
    config: Mapping[str, Any]
    not_applicable: tuple[str, ...] = ()
    of_sets: tuple[SetValue, ...] = field(default=())
    peak_memory: int = 0


def write_report(out: Path, found: Evaluation) -> None:
    """Write per_image.csv and .parquet, timing.csv, summary.json and table.md into ``out``, and print the table."""
    summary = summarise(found.results.rows)
    table = table_text(summary, found.metrics.metrics, found.method)
    facts = table_facts(found, summary)
    write_rows(out / "per_image.csv", found.results.rows)
    write_parquet(out / "per_image.parquet", found.results.rows)
    write_timings(out / "timing.csv", found.results.timings)
    with write_atomically(out / "summary.json") as temporary:
        content = json.dumps(summary_content(found, summary), indent=1, ensure_ascii=False, default=str)
        temporary.write_text(content + "\n", encoding="utf-8")
    with write_atomically(out / "table.md") as temporary:
        lines = [table, "", *(f"- {fact}" for fact in facts), ""]
        temporary.write_text("\n".join(lines), encoding="utf-8")

    print(table)
    for fact in facts:
        print(fact)
    for skipped in found.results.skipped:
        print(f"skipped {skipped.name}: {skipped.reason}")


def table_text(summary: Summary, metrics: Sequence[Metric], method: Method) -> str:
    """The table in Markdown; the shuffled control is not ranked."""
    return markdown_table(
        {name: {k: s.mean for k, s in statistics.items()} for name, statistics in summary.items()},
        [Column(m.name, m.better, m.digits) for m in metrics],
        unranked={shuffled_name(method.name)},
    )


def table_facts(found: Evaluation, summary: Summary) -> list[str]:
    """Lines below the table: without them its numbers mean little."""
    benchmark, method, results, settings = found.benchmark, found.method, found.results, found.settings
    seeds = ", ".join(map(str, settings.seeds))
    facts = [
        f"{benchmark.name}, ×{benchmark.upscale:g}: means over {len(results.images)} images"
        + (f", {len(results.skipped)} skipped as unreadable or unfit" if results.skipped else ""),
        f"{_protocols(found.metrics.metrics)}; pyiqa {pyiqa_version()}; seed {seeds}",
        f"prompts: {benchmark.prompts}",
        f"{method.name}: " + ", ".join(_precise(name, s) for name, s in summary.get(method.name, {}).items()),
    ]
    if "names" in method.settings:
        facts.append(f"{method.name}: images matched by one change of name for all ({method.settings['names']})")
    facts += [f"let pass: {note}" for note in benchmark.notes]
    facts += [f"{m.metric} is missing: {m.reason}" for m in found.metrics.missing]
    if found.not_applicable:
        facts.append(f"not applicable without a ground truth: {', '.join(found.not_applicable)}")
    for metric, (n, reason) in results.undefined.items():
        facts.append(f"{metric} has no value for {n} images, such as {reason}")
    for value in found.of_sets:
        facts.append(
            f"{value.metric} of {value.method}: {value.value:.2f} (n = {value.n})"
            + (f"; warning: {value.warning}" if value.warning else "")
        )
    if "ckpt" in method.settings:
        sampler = method.settings["sampler"]
        facts.append(
            f"{method.name}: {method.settings['ckpt']} at step {method.settings['step']}, "
            f"trained on degradation {method.settings['trained_on_degradation']}; {sampler['steps']} steps, "
            f"guidance {sampler['guidance']:g}, from {sampler['start']}; "
            f"{results.seconds_per_image:.2f} s an image"
            + (", warm-up included" if results.seconds_with_warm_up else "")
        )
    if settings.samples > 1:
        facts.append(
            f"{method.name}: mean of the values of {settings.samples} samples; "
            f"{mean_name(method.name, settings.samples)}: values of the average image"
        )
    for name, metrics in results.variation.items():
        over = next(iter(metrics.values()))
        words = ", ".join(f"{k} {v.statistic.mean:.4f} ± {v.statistic.std:.4f}" for k, v in metrics.items())
        facts.append(f"{name}, mean ± deviation over {len(over.means)} {over.over}: {words}")
    if settings.shuffled:
        facts.append(f"{shuffled_name(method.name)}: each image restored from another one's LR, as a control")
    return facts


def summary_content(found: Evaluation, summary: Summary) -> dict[str, Any]:
    """summary.json: statistics by method and metric, and all that they depend on."""
    benchmark, method, results, config = found.benchmark, found.method, found.results, found.config
    return {
        "benchmark": {
            "name": benchmark.name,
            "upscale": benchmark.upscale,
            "images": len(results.images),
            "lq": str(config["benchmark"]["lq"]),
            "hq": str(config["benchmark"]["hq"]),
            "source": config["benchmark"]["source"],
            "checked": benchmark.checked,
            "notes": list(benchmark.notes),
        },
        "method": {"name": method.name, **method.settings},
        "metrics": {m.name: m.facts() for m in found.metrics.metrics},
        "missing": [asdict(m) for m in found.metrics.missing],
        "not_applicable": list(found.not_applicable),
        "undefined": {metric: {"images": n, "reason": why} for metric, (n, why) in results.undefined.items()},
        "methods": {
            name: {metric: _statistic(s) for metric, s in statistics.items()} for name, statistics in summary.items()
        },
        "variation": {
            name: {
                metric: {"over": v.over, "means": [_number(m) for m in v.means], **_statistic(v.statistic)}
                for metric, v in metrics.items()
            }
            for name, metrics in results.variation.items()
        },
        "of_sets": [{**asdict(value), "value": _number(value.value)} for value in found.of_sets],
        "settings": {
            "seed": found.settings.seeds[0],
            "seeds": list(found.settings.seeds),
            "samples": found.settings.samples,
            "shuffled": found.settings.shuffled,
            "batch_size": config["batch_size"],
            "processes": config["processes"],
            "metrics_only": config["metrics_only"],
            "prompts": benchmark.prompts,
        },
        "seconds_per_image": results.seconds_per_image,
        "seconds_with_warm_up": results.seconds_with_warm_up,
        "peak_memory_bytes": found.peak_memory,
        "skipped": [{"image": s.name, "reason": s.reason} for s in results.skipped],
        "versions": {"python": platform.python_version(), **{name: _version(name) for name in PACKAGES}},
        "revision": git_revision(),
    }


def write_timings(path: Path, timings: Sequence[Timing]) -> None:
    """timing.csv: image, method, seed, samples, seconds, warm_up."""
    with write_atomically(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, [f.name for f in fields(Timing)], lineterminator="\n")
        writer.writeheader()
        writer.writerows(asdict(timing) for timing in timings)


def values_of(rows: Sequence[Row]) -> dict[tuple[str, str, str], float]:
    """(image, method, metric) → value under the first seed."""
    values: dict[tuple[str, str, str], float] = {}
    for row in rows:
        values.setdefault((row.image, row.method, row.metric), row.value)
    return values


def _protocols(metrics: Sequence[Metric]) -> str:
    words = []
    for m in metrics:
        details = [part for part in (m.protocol, f"border {m.border}", m.variant) if part != "default"]
        words.append(f"{m.name} on {m.channel} ({', '.join(part for part in details if part)})")
    return ", ".join(words)


def _precise(name: str, s: Statistic) -> str:
    return f"{name.upper()} {'–' if math.isnan(s.mean) else f'{s.mean:.4f}'}"


def _statistic(s: Statistic) -> dict[str, float | None]:
    """As JSON, which has no NaN."""
    return {"mean": _number(s.mean), "std": _number(s.std), "n": s.n}


def _number(value: float) -> float | None:
    return None if math.isnan(value) else value


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None

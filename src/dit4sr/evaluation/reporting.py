"""What an evaluation leaves behind: rows, summary, table, picture, and a few lines on the terminal."""

from __future__ import annotations

import json
import math
import platform
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from dit4sr.evaluation.benchmarks import Benchmark
from dit4sr.evaluation.measuring import Example, Measured, mean_name, shuffled_name
from dit4sr.evaluation.methods import Bicubic, Method
from dit4sr.evaluation.metrics import Metric, pyiqa_version
from dit4sr.evaluation.pictures import SheetRow, write_sheet
from dit4sr.evaluation.tables import Column, Row, Statistic, Summary, markdown_table, summarise, write_rows
from dit4sr.files import write_atomically
from dit4sr.provenance import git_revision

PACKAGES = ("dit4sr", "torch", "diffusers", "pyiqa", "numpy", "pillow")


def write_report(
    out: Path,
    benchmark: Benchmark,
    method: Method,
    metrics: Sequence[Metric],
    result: Measured,
    config: Mapping[str, Any],
) -> None:
    """Write per_image.csv, summary.json, table.md and comparison.png into ``out``, and print the table."""
    summary = summarise(result.rows)
    table = table_text(summary, metrics, method)
    facts = table_facts(benchmark, method, metrics, result, config)
    write_rows(out / "per_image.csv", result.rows)
    with write_atomically(out / "summary.json") as temporary:
        content = summary_content(summary, benchmark, method, metrics, result, config)
        temporary.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    with write_atomically(out / "table.md") as temporary:
        lines = [table, "", *(f"- {fact}" for fact in facts), ""]
        temporary.write_text("\n".join(lines), encoding="utf-8")
    write_comparison(out / "comparison.png", method, result, benchmark, config)

    print(table)
    for fact in facts:
        print(fact)
    for skipped in result.skipped:
        print(f"skipped {skipped.name}: {skipped.reason}")
    for name in ("table.md", "per_image.csv", "summary.json", "comparison.png", "restored"):
        print(out / name)


def table_text(summary: Summary, metrics: Sequence[Metric], method: Method) -> str:
    """The table in Markdown; the shuffled control is not ranked."""
    return markdown_table(
        {name: {k: s.mean for k, s in statistics.items()} for name, statistics in summary.items()},
        [Column(m.name, m.better, m.digits) for m in metrics],
        unranked={shuffled_name(method.name)},
    )


def table_facts(
    benchmark: Benchmark,
    method: Method,
    metrics: Sequence[Metric],
    result: Measured,
    config: Mapping[str, Any],
) -> list[str]:
    """Lines below the table: without them its numbers mean little."""
    n = len({row.image for row in result.rows})
    protocols = ", ".join(f"{m.name} on {m.channel} ({m.protocol}, border {m.border})" for m in metrics)
    facts = [
        f"{benchmark.name}, ×{benchmark.upscale:g}: means over {n} images"
        + (f", {len(result.skipped)} skipped as unreadable" if result.skipped else ""),
        f"{protocols}; pyiqa {pyiqa_version()}; seed {config['seed']}",
        f"prompts: {benchmark.prompts}",
    ]
    if "ckpt" in method.settings:
        sampler = method.settings["sampler"]
        facts.append(
            f"{method.name}: {method.settings['ckpt']} at step {method.settings['step']}, "
            f"trained on degradation {method.settings['trained_on_degradation']}; {sampler['steps']} steps, "
            f"guidance {sampler['guidance']:g}, from {sampler['start']}; "
            f"{result.seconds_per_image:.2f} s an image"
        )
    if config["samples"] > 1:
        facts.append(
            f"{method.name}: mean of the values of {config['samples']} samples; "
            f"{mean_name(method.name, config['samples'])}: values of the average image"
        )
    if config["shuffled"]:
        facts.append(f"{shuffled_name(method.name)}: each image restored from another one's LR, as a control")
    return facts


def summary_content(
    summary: Summary,
    benchmark: Benchmark,
    method: Method,
    metrics: Sequence[Metric],
    result: Measured,
    config: Mapping[str, Any],
) -> dict[str, Any]:
    """summary.json: statistics by method and metric, and all that they depend on."""
    return {
        "benchmark": {
            "name": benchmark.name,
            "upscale": benchmark.upscale,
            "images": len({row.image for row in result.rows}),
            "lq": str(config["benchmark"]["lq"]),
            "hq": str(config["benchmark"]["hq"]),
            "source": config["benchmark"]["source"],
        },
        "method": {"name": method.name, **method.settings},
        "metrics": {
            m.name: {"better": m.better, "protocol": m.protocol, "channel": m.channel, "border": m.border}
            for m in metrics
        },
        "methods": {
            name: {metric: _statistic(s) for metric, s in statistics.items()} for name, statistics in summary.items()
        },
        "settings": {
            "seed": config["seed"],
            "samples": config["samples"],
            "shuffled": config["shuffled"],
            "batch_size": config["batch_size"],
            "prompts": benchmark.prompts,
        },
        "seconds_per_image": result.seconds_per_image,
        "skipped": [{"image": s.name, "reason": s.reason} for s in result.skipped],
        "versions": {"python": platform.python_version(), **{name: _version(name) for name in PACKAGES}},
        "revision": git_revision(),
    }


def write_comparison(
    path: Path, method: Method, result: Measured, benchmark: Benchmark, config: Mapping[str, Any]
) -> None:
    """comparison.png: input, bicubic, restored, the mean of the samples if there is one, ground truth."""
    samples = config["samples"]
    names = {"bicubic": Bicubic().name, "restored": method.name, "mean": mean_name(method.name, samples)}
    columns = {"lq": "input (LR)", "bicubic": "bicubic"}
    if method.name != Bicubic().name:
        columns["restored"] = f"{method.name}, one sample" if samples > 1 else method.name
    if samples > 1:
        columns["mean"] = f"mean of {samples} samples"
    columns["truth"] = "ground truth"
    values = {(row.image, row.method, row.metric): row for row in result.rows}
    rows = [
        SheetRow(
            example.name,
            [getattr(example, column) for column in columns],
            [_caption(values, example, column, names.get(column)) for column in columns],
        )
        for example in result.examples
    ]
    title = f"{method.name} on {benchmark.name}, ×{benchmark.upscale:g}"
    note = "PSNR and SSIM of the whole image" + ("; of single samples, the mean over all" if samples > 1 else "")
    write_sheet(path, rows, list(columns.values()), title=title, note=note)


def _caption(values: Mapping[tuple[str, str, str], Row], example: Example, column: str, method: str | None) -> str:
    if column == "lq":
        return f"{example.lq.shape[1]}×{example.lq.shape[0]}"
    if column == "truth":
        return f"{example.truth.shape[1]}×{example.truth.shape[0]}"
    psnr, ssim = (values.get((example.name, str(method), metric)) for metric in ("psnr", "ssim"))
    parts = ([f"{psnr.value:.2f} dB"] if psnr else []) + ([f"SSIM {ssim.value:.3f}"] if ssim else [])
    return " · ".join(parts)


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

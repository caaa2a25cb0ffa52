"""The end of an evaluation, in its first process: metrics of sets, report, pictures, W&B."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from dit4sr.evaluation.benchmarks import Benchmark
from dit4sr.evaluation.methods import Method
from dit4sr.evaluation.metrics import MetricSet, Missing
from dit4sr.evaluation.reporting import Evaluation, SetValue, write_report
from dit4sr.evaluation.restored import Settings, restored_file
from dit4sr.evaluation.results import Results
from dit4sr.evaluation.showing import examples, log_to_wandb, write_comparison


def finish_run(
    out: Path,
    benchmark: Benchmark,
    method: Method,
    metrics: MetricSet,
    not_applicable: tuple[str, ...],
    results: Results,
    settings: Settings,
    config: Mapping[str, Any],
    device: str,
    peak_memory: int,
) -> None:
    """Write and print what an evaluation found; see :func:`dit4sr.evaluation.run.run`."""
    values, missing = _of_sets(out, benchmark, method, metrics, results, settings, config, device)
    metrics = replace(metrics, missing=(*metrics.missing, *missing))
    found = Evaluation(
        benchmark, method, metrics, results, settings, config, not_applicable, tuple(values), peak_memory
    )
    shown = examples(out, found, config["pictures"])
    write_report(out, found)
    write_comparison(out / "comparison.png", shown, found)
    log_to_wandb(out, found, shown, config["logger"]["wandb"])
    for name in ("table.md", "per_image.csv", "summary.json", "comparison.png", "restored"):
        print(out / name)


def _of_sets(
    out: Path,
    benchmark: Benchmark,
    method: Method,
    metrics: MetricSet,
    results: Results,
    settings: Settings,
    config: Mapping[str, Any],
    device: str,
) -> tuple[list[SetValue], list[Missing]]:
    from dit4sr.evaluation.sets import ENOUGH, LEAST, fid, warning_for
    from dit4sr.evaluation.weights import MissingWeights

    values, missing = [], []
    measured = set(results.images)
    images = [image for image in benchmark.images if image.name in measured]
    restored = [restored_file(out, settings, image.name, settings.seeds[0]) for image in images]
    truths = [image.hq for image in images if image.hq is not None]
    for name in metrics.of_sets:
        if len(restored) < LEAST:
            missing.append(Missing(name, f"it compares sets of {LEAST} images or more, better {ENOUGH}"))
            continue
        try:
            value = fid(restored, truths, config["metrics"], device)
        except MissingWeights as error:
            missing.append(Missing(name, str(error), error.files))
        else:
            values.append(SetValue(name, method.name, value, len(restored), warning_for(len(restored))))
    return values, missing

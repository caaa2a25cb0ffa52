"""The verb ``evaluate``: restore a benchmark, measure, and write rows, tables and pictures."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig, OmegaConf

from dit4sr.errors import UserError

if TYPE_CHECKING:
    from dit4sr.evaluation.benchmarks import Benchmark
    from dit4sr.evaluation.methods import Method


def run(config: DictConfig, explicit: Collection[str] = ()) -> int:
    """Evaluate one method and the bicubic baseline on one benchmark.

    Writes into ``config.out``: per_image.csv, summary.json, table.md, comparison.png, config.yaml,
    restored/<stem>.png and, with several samples, restored_mean/<stem>.png.

    Args:
        config: configs/evaluate.yaml, composed.
        explicit: names of the settings that the command line set.

    Returns:
        0 when done, 1 when images of the benchmark could not be read (they are listed).

    Raises:
        UserError: for a config or an input that the user can mend.
    """
    plain: dict[str, Any] = OmegaConf.to_container(config, resolve=True)  # type: ignore[assignment]
    for name in ("samples", "batch_size", "pictures"):
        if plain[name] < 1:
            raise UserError(f"{name}={plain[name]}: give 1 or more")
    benchmark = find_benchmark(plain, explicit)

    # Late: these import torch, which takes seconds, and a missing folder is known already.
    from dit4sr.evaluation.measuring import measure
    from dit4sr.evaluation.methods import build_method
    from dit4sr.evaluation.metrics import build_metrics
    from dit4sr.evaluation.reporting import write_report
    from dit4sr.provenance import write_run_config

    metrics = build_metrics(plain["metrics"])
    if not benchmark.has_ground_truth:
        raise UserError(
            f"benchmark {benchmark.name} has no ground truth; metrics={plain['metrics']['name']} needs one: "
            "restore its photos by python restore.py"
        )
    method = build_method(plain, benchmark, explicit)
    check_controls(plain, benchmark, method)

    out = Path(plain["out"])
    write_run_config(out, OmegaConf.create(plain))
    result = measure(
        benchmark,
        method,
        metrics,
        out,
        seed=plain["seed"],
        samples=plain["samples"],
        shuffled=plain["shuffled"],
        batch_size=plain["batch_size"],
        pictures=plain["pictures"],
    )
    write_report(out, benchmark, method, metrics, result, plain)
    return 1 if result.skipped else 0


def find_benchmark(config: dict[str, Any], explicit: Collection[str]) -> Benchmark:
    """The benchmark, made first where it is the embedded one; with the prompts that ``prompt`` chooses.

    Raises:
        UserError: see :func:`dit4sr.evaluation.benchmarks.load_benchmark`.
    """
    from dit4sr.evaluation.benchmarks import load_benchmark

    if config["benchmark"]["name"] == "demo":
        from dit4sr.data.prepare import ensure_embedded

        ensure_embedded(config["paths"]["data"])
    return load_benchmark(
        config["benchmark"],
        fixed_prompt=config["prompt"]["fixed"],
        prompts_required="benchmark.prompts" in explicit,
    )


def check_controls(config: dict[str, Any], benchmark: Benchmark, method: Method) -> None:
    """Refuse options that mean nothing for the method.

    Raises:
        UserError: saying which.
    """
    if config["samples"] > 1 and not method.samples:
        raise UserError(f"samples={config['samples']}: {method.name} has one result an image; use samples=1")
    if config["shuffled"] and not method.reads_lq:
        raise UserError(f"shuffled=true: the images of {method.name} are made already; leave it out")
    if config["shuffled"] and len(benchmark.images) < 2:
        raise UserError("shuffled=true needs a benchmark of two images or more")

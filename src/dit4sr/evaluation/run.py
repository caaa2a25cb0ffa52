"""The verb ``evaluate``: restore a benchmark, measure, and write rows, tables and pictures."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig, OmegaConf

from dit4sr.errors import UserError
from dit4sr.evaluation.checks import check_method, check_settings
from dit4sr.evaluation.processes import Group, leave, peak_memory, spawn, torchrun_group
from dit4sr.files import check_folder, disk_errors

if TYPE_CHECKING:
    from dit4sr.evaluation.benchmarks import Benchmark
    from dit4sr.evaluation.methods import Method
    from dit4sr.evaluation.metrics import MetricSet
    from dit4sr.evaluation.restored import Settings

JOURNAL = "journal"
"""Folder, in the run's, of what is finished."""


def run(config: DictConfig, explicit: Collection[str] = ()) -> int:
    """Evaluate one method and the bicubic baseline on one benchmark.

    Writes into ``config.out``: per_image.csv and .parquet, timing.csv, summary.json, table.md, comparison.png,
    config.yaml, restored/<stem>.png, journal/ and, with several samples or seeds, restored_mean/<stem>.png,
    restored_seed<n>/<stem>.png and restored_sample<k>/<stem>.png. A killed evaluation continues when the same command
    runs again. With ``report`` it evaluates nothing, but merges evaluations: see
    :func:`dit4sr.evaluation.reports.run.report`.

    Args:
        config: configs/evaluate.yaml, composed.
        explicit: names of the settings that the command line set.

    Returns:
        0 when done, also where metrics are missing for want of weights (they are listed); 1 when images of the
        benchmark could not be used (they are listed).

    Raises:
        UserError: for a config or an input that the user can mend.
    """
    plain: dict[str, Any] = OmegaConf.to_container(config, resolve=True)  # type: ignore[assignment]
    if plain.get("report") is not None:
        if plain["report"] == "":  # it would be the working folder
            raise UserError("report= is empty: give the folders of evaluations, report='[outputs/a,outputs/b]'")
        from dit4sr.evaluation.reports.run import report

        return report(plain, explicit)
    check_settings(plain)
    from dit4sr.evaluation.metrics import parse_names  # late: SciPy comes with it

    parse_names(plain["metrics"])
    if plain["prefetch"] or plain["calibrate"]:
        return _about_metrics(plain)
    if plain["metrics_only"] and plain["method"]["name"] == "folder" and plain["method"]["path"] is not None:
        plain["metrics_only"] = False  # nothing of a folder is restored in any case
    if plain["metrics_only"]:
        from dit4sr.evaluation.earlier import earlier_config

        plain = earlier_config(plain, explicit)
    else:
        check_method(plain, explicit)
    check_folder(Path(plain["out"]))
    if (group := torchrun_group()) is not None:
        try:
            return evaluate(group, plain, explicit)
        finally:
            leave()
    if plain["processes"] > 1:
        # What can be wrong with the input is said here, before processes start.
        find_benchmark(plain, explicit)
        return spawn(plain["processes"], evaluate, plain, list(explicit))
    return evaluate(Group(), plain, explicit)


def evaluate(group: Group, config: dict[str, Any], explicit: Collection[str]) -> int:
    """Evaluate as one process of a group; see :func:`run`."""
    with disk_errors(Path(config["out"]), goes_on=True):
        return _evaluate(group, config, explicit)


def _evaluate(group: Group, config: dict[str, Any], explicit: Collection[str]) -> int:
    from dit4sr.evaluation.prompting import with_captions
    from dit4sr.prompts.captions import build_captions

    captions = build_captions(config)
    # By the first process alone: it may download, unpack or make the images, or caption them.
    benchmark: Benchmark = group.first_does(lambda: find_benchmark(config, explicit, captions.fixed))
    config["out"] = group.first_does(lambda: str(config["out"]))
    if config["method"]["name"] == "checkpoint" and not config["metrics_only"]:
        benchmark = group.first_does(lambda: with_captions(benchmark, captions))

    # Late: these import torch, which takes seconds, and a missing folder is known already.
    from dit4sr.evaluation import journal
    from dit4sr.evaluation.measuring import measure
    from dit4sr.evaluation.metrics import build_metrics
    from dit4sr.evaluation.restored import is_written
    from dit4sr.evaluation.results import gather
    from dit4sr.restoration.loading import resolve_device

    out = Path(config["out"])
    config["device"] = group.device(config["device"])
    device = str(resolve_device(config["device"]))
    metrics, not_applicable = _applicable(build_metrics(config["metrics"], device), benchmark)
    settings, method = _method(out, config, benchmark, explicit)
    check_controls(config, benchmark, method)

    folder = out / (f"{JOURNAL}_metrics_only" if config["metrics_only"] else JOURNAL)
    group.first_does(lambda: _begin(out, folder, config, _identity(config, benchmark, method, metrics)))
    finished = {
        key: entry
        for key, entry in journal.read(folder).items()
        if not settings.write or is_written(out, settings, *key)
    }
    names = {image.name for image in benchmark.images}
    finished = {k: e for k, e in finished.items() if e.image in names and e.seed in settings.seeds}
    if finished and group.first:
        print(f"{len(finished)} of {len(names) * len(settings.seeds)} images are finished: they are kept")
    group.gather(None)  # all have read before one writes
    file = journal.Journal(folder, group.rank)
    try:
        measured = measure(
            benchmark, method, metrics.metrics, out, settings, group=group, journal=file, finished=finished
        )
    finally:
        file.close()
    results = gather(benchmark, method, metrics.metrics, settings, finished.values(), measured, group)
    if not results.rows:
        raise UserError(
            f"benchmark {benchmark.name}: none of its images could be read"
            + (f" ({results.skipped[0].name}: {results.skipped[0].reason})" if results.skipped else "")
            + "; get them again"
        )
    memory = max(group.gather(peak_memory(device)))

    def finish() -> None:
        from dit4sr.evaluation.finishing import finish_run

        finish_run(out, benchmark, method, metrics, not_applicable, results, settings, config, device, memory)

    group.first_does(finish)
    return 1 if results.skipped else 0


def find_benchmark(config: dict[str, Any], explicit: Collection[str], fixed_prompt: str | None = None) -> Benchmark:
    """The benchmark, fetched or made first where that is asked for; with its own prompts, or a fixed one.

    Raises:
        UserError: see :func:`dit4sr.evaluation.benchmarks.load_benchmark`.
    """
    from dit4sr.evaluation.benchmarks import load_benchmark

    if config["benchmark"]["name"] == "demo":
        from dit4sr.data.prepare import ensure_embedded

        ensure_embedded(config["paths"]["data"])
    if config["benchmark"].get("download"):
        from dit4sr.evaluation.fetching import fetch_benchmark

        fetch_benchmark(config["benchmark"], Path(config["paths"]["benchmarks"]).expanduser())
    return load_benchmark(
        config["benchmark"],
        fixed_prompt=fixed_prompt,
        prompts_required="benchmark.prompts" in explicit,
    )


def check_controls(config: dict[str, Any], benchmark: Benchmark, method: Method) -> None:
    """Refuse options that mean nothing for the method.

    Raises:
        UserError: saying which.
    """
    if config["metrics_only"]:
        return
    for name, count in (("samples", config["samples"]), ("seeds", len(config["seeds"]))):
        if count > 1 and not method.samples:
            raise UserError(f"{name}={config[name]}: {method.name} has one result an image; leave {name} out")
    if config["shuffled"] and not method.reads_lq:
        raise UserError(f"shuffled=true: the images of {method.name} are made already; leave it out")
    if config["shuffled"] and len(benchmark.images) < 2:
        raise UserError("shuffled=true needs a benchmark of two images or more")


def _about_metrics(config: dict[str, Any]) -> int:
    if config["prefetch"]:
        from dit4sr.evaluation.prefetch import fetch

        return fetch(config["metrics"])
    from dit4sr.evaluation.calibration import calibrate

    return calibrate(config["metrics"], config["device"])


def _method(
    out: Path, config: dict[str, Any], benchmark: Benchmark, explicit: Collection[str]
) -> tuple[Settings, Method]:
    from dit4sr.evaluation.restored import Settings

    settings = Settings(tuple(config["seeds"]), config["samples"], config["shuffled"], config["batch_size"])
    if config["metrics_only"]:
        from dit4sr.evaluation.rescoring import restored_method

        return restored_method(out, config, benchmark, settings)
    from dit4sr.evaluation.methods import build_method

    return settings, build_method(config, benchmark, explicit)


def _applicable(metrics: MetricSet, benchmark: Benchmark) -> tuple[MetricSet, tuple[str, ...]]:
    """The metrics that a benchmark without ground truth allows, and the names of the others.

    Raises:
        UserError: nothing is left to measure, which is said before anything is restored for it.
    """
    from dataclasses import replace

    left_out: tuple[str, ...] = ()
    if not benchmark.has_ground_truth:
        left_out = (*(m.name for m in metrics.metrics if m.reference), *metrics.of_sets)
        kept = tuple(m for m in metrics.metrics if not m.reference)
        metrics = replace(metrics, metrics=kept, of_sets=())
    if not metrics.metrics:
        why = [f"benchmark {benchmark.name} has no ground truth for {', '.join(left_out)}"] if left_out else []
        why += [f"{missing.metric}: {missing.reason}" for missing in metrics.missing]
        raise UserError(
            f"nothing can be measured: {'; '.join(why)}. Choose other metrics, such as "
            f"{'metrics.names=[piqe]' if left_out else 'metrics=fidelity'}; restore.py restores without measuring"
        )
    return metrics, left_out


def _begin(out: Path, folder: Path, config: dict[str, Any], identity: Mapping[str, Any]) -> None:
    from dit4sr.evaluation import journal
    from dit4sr.provenance import write_run_config

    why = journal.prepare(folder, identity, keep=config["resume"] == "auto")
    if not config["metrics_only"]:
        write_run_config(out, OmegaConf.create(config))
    if why is not None:
        print(f"{out} holds an evaluation {why}: it is done anew (metrics_only=true measures its images again)")


def _identity(config: dict[str, Any], benchmark: Benchmark, method: Method, metrics: MetricSet) -> dict[str, Any]:
    """All that the values depend on."""
    from dit4sr.evaluation.identity import file_facts, method_facts
    from dit4sr.evaluation.metrics import pyiqa_version

    return {
        "benchmark": [
            (i.name, *file_facts(i.lq), *(file_facts(i.hq) if i.hq is not None else ()), i.prompt, i.target)
            for i in benchmark.images
        ],
        "method": (method.name, method_facts(method)),
        "metrics": (pyiqa_version(), [(m.name, m.facts()) for m in metrics.metrics]),
        "seeds": config["seeds"],
        "samples": config["samples"],
        "shuffled": config["shuffled"],
        "batch_size": config["batch_size"],
    }

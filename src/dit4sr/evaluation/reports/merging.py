"""Many runs as one table a benchmark: columns that say on what they are measured, rows that say where they come from.

Numbers of different protocols, variants or versions of pyiqa never share a column, and those of different
benchmarks never a table. A column's means are over the images that all of its rows have.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from dit4sr.errors import UserError
from dit4sr.evaluation.catalogue import KNOWN, Better
from dit4sr.evaluation.reports.content import BenchmarkTable, Cell, Comparison, Entry, Measure, Spread
from dit4sr.evaluation.reports.naming import BICUBIC, label_runs, own_label, seeds_differ
from dit4sr.evaluation.reports.quoting import quote
from dit4sr.evaluation.reports.resampling import Values, bootstrap, holm, paired_p
from dit4sr.evaluation.reports.runs import Run
from dit4sr.evaluation.tables import Column, Row, places, statistic

UNNAMED = ("folder",)
"""Benchmarks that are another one in each folder."""

SHUFFLED = "(shuffled LR)"
"""The control: it takes no part in the ranking."""


@dataclass(frozen=True)
class Options:
    """How certainty is computed.

    Attributes:
        against: label of the method that the others are compared with; None: the first run's.
        confidence: of the intervals.
        resamples: of the bootstrap and of the test.
        seed: of both.
    """

    against: str | None = None
    confidence: float = 0.95
    resamples: int = 10_000
    seed: int = 0


Sample = tuple[int, int]
"""Run's number, seed."""


def merge(runs: Sequence[Run], options: Options) -> list[BenchmarkTable]:
    """One table for each benchmark.

    Raises:
        UserError: runs contradict each other or have no image in common, or ``options.against`` is no row.
    """
    groups: dict[tuple[str, float], list[Run]] = {}
    for run in runs:
        name = f"{run.benchmark} ({run.lq})" if run.benchmark in UNNAMED else run.benchmark
        groups.setdefault((name, run.upscale), []).append(run)
    tables = [_table(name, upscale, members, options) for (name, upscale), members in groups.items()]
    if options.against is not None and all(t.reference is None for t in tables):
        labels = ", ".join(dict.fromkeys(e.label for t in tables for e in t.entries))
        raise UserError(f"report_options.against={options.against}: no such row; choose one of {labels}")
    return tables


def _table(name: str, upscale: float, runs: list[Run], options: Options) -> BenchmarkTable:
    _same_inputs(runs)
    entries, values = _entries(runs)
    measures = {measure: _column(measure, runs) for measure in dict.fromkeys(m for _, m in values)}
    labels = [entry.label for entry in entries]
    firsts = [label for label, _ in label_runs(runs)]
    wanted = options.against or next((label for label in firsts if label != BICUBIC), firsts[0])
    reference = wanted if wanted in labels else None
    notes: dict[str, list[str]] = {}
    together: dict[tuple[str, ...], dict[Measure, dict[str, Values]]] = {}
    for measure in measures:
        images, rows = _common(measure, entries, values, notes)
        if images:
            together.setdefault(images, {})[measure] = rows
    for columns in together.values():
        _judge(columns, entries, reference, options)
    _sets(entries, runs, measures)
    for measure, column in measures.items():
        ranked = {e.label: e.cells[measure].value for e in entries if e.ranked and measure in e.cells}
        for label, place in places(ranked, column).items():
            entries[labels.index(label)].places[measure] = place
    quoted = quote(runs[0].benchmark, upscale, measures)
    said = [f"{', '.join(dict.fromkeys(metrics))}: {note}" for note, metrics in notes.items()]
    return BenchmarkTable(name, upscale, measures, entries, quoted, reference, said)


def _entries(runs: list[Run]) -> tuple[list[Entry], dict[tuple[str, Measure], dict[Sample, dict[str, float]]]]:
    """The rows, and (label, measure) → sample → image → value."""
    entries: dict[str, Entry] = {}
    values: dict[tuple[str, Measure], dict[Sample, dict[str, float]]] = {}
    number = {id(run): i for i, run in enumerate(runs)}
    for label, members in label_runs(runs):
        for run in members:
            for row in run.rows:
                named = own_label(run, label, row.method)
                entry = entries.setdefault(named, Entry(named, row.method, not named.endswith(SHUFFLED), []))
                if run not in entry.runs:
                    entry.runs.append(run)
                # The baseline is not random and in many runs: its values are kept once.
                sample = (0, 0) if named == BICUBIC else (number[id(run)], row.seed)
                known = values.setdefault((named, _measure(row)), {}).setdefault(sample, {})
                if math.isfinite(row.value):
                    known.setdefault(row.image, row.value)
    for entry in entries.values():
        _costs(entry)
    for (label, _), samples in values.items():
        random = any("ckpt" in run.facts for run in entries[label].runs) or len(samples) > 1
        if random and label != BICUBIC:
            entries[label].seeds = max(entries[label].seeds or 0, len(samples))
    # The baseline last: what a table is about comes first.
    ordered = sorted(entries.values(), key=lambda e: e.label == BICUBIC)
    return ordered, values


def _measure(row: Row) -> Measure:
    metric = row.metric.partition("@")[0]
    return Measure(metric, row.protocol, row.channel, row.border, row.variant, row.data_range, row.pyiqa)


def _column(measure: Measure, runs: Sequence[Run]) -> Column:
    """Direction and digits, from the catalogue; of metrics that it does not know, from the run that measured them."""
    if (known := KNOWN.get(measure.metric)) is not None:
        return Column(measure.metric, known.better, known.digits)
    for run in runs:
        facts = run.summary.get("metrics", {}).get(measure.metric, {})
        better: Better | None = facts.get("better")
        if better in ("higher", "lower", "one"):
            return Column(measure.metric, better, int(facts.get("digits", 4)))
    raise UserError(f"report: {measure.metric} is no metric of the catalogue: evaluate again with this version")


def _common(
    measure: Measure,
    entries: list[Entry],
    values: Mapping[tuple[str, Measure], Mapping[Sample, Mapping[str, float]]],
    notes: dict[str, list[str]],
) -> tuple[tuple[str, ...], dict[str, Values]]:
    """Of one column: the images for which all of its rows have a value, and label → (samples, images)."""
    have = {}
    for entry in entries:
        samples = {key: v for key, v in values.get((entry.label, measure), {}).items() if v}
        if samples:
            have[entry.label] = samples
    own = {label: set.intersection(*(set(v) for v in samples.values())) for label, samples in have.items()}
    if not own:
        return (), {}
    images = sorted(set.intersection(*own.values()))
    if not images:
        few = min(own, key=lambda label: len(own[label]))
        rest = ", ".join(label for label in own if label != few) or few
        raise UserError(
            f"report: {few} and {rest} have no image with a value of {measure.metric} in common: "
            "evaluate them on the same images, or report them apart"
        )
    more = {label: len(names) for label, names in own.items() if len(names) > len(images)}
    if more:
        counts = ", ".join(f"{label} has {count}" for label, count in more.items())
        note = f"over the {len(images)} images for which all rows have a value; {counts}"
        notes.setdefault(note, []).append(measure.metric)
    return tuple(images), {
        label: np.array([[v[i] for i in images] for v in samples.values()], dtype=float)
        for label, samples in have.items()
    }


def _judge(
    columns: Mapping[Measure, Mapping[str, Values]], entries: list[Entry], reference: str | None, options: Options
) -> None:
    """Means, intervals and comparisons of the columns that have the same images: all resampled together."""
    by_label = {entry.label: entry for entry in entries}
    means = {(m, label): samples.mean(0) for m, rows in columns.items() for label, samples in rows.items()}
    pairs = {
        (m, label): own - means[m, reference]
        for (m, label), own in means.items()
        if reference is not None and label != reference and (m, reference) in means
    }
    intervals = bootstrap(
        np.stack([*means.values(), *pairs.values()], axis=1),
        confidence=options.confidence,
        resamples=options.resamples,
        seed=options.seed,
    )
    for ((m, label), own), interval in zip(means.items(), intervals, strict=False):
        spread = _spread(by_label[label], m, columns[m][label].mean(1), len(own))
        by_label[label].cells[m] = Cell(float(own.mean()), len(own), interval, spread)
    if not pairs or len(next(iter(pairs.values()))) < 2:
        return
    p = paired_p(np.stack(list(pairs.values()), axis=1), resamples=options.resamples, seed=options.seed)
    found = dict(zip(pairs, zip(p, intervals[len(means) :], strict=True), strict=True))
    for measure in columns:
        rows = [label for m, label in pairs if m == measure]
        for label, adjusted in zip(rows, holm([found[measure, label][0] for label in rows]), strict=True):
            difference = pairs[measure, label]
            own_p, interval = found[measure, label]
            by_label[label].compared[measure] = Comparison(
                float(difference.mean()), interval, len(difference), own_p, adjusted
            )


def _spread(entry: Entry, measure: Measure, means: Values, n: int) -> Spread | None:
    if len(means) > 1:
        return Spread(statistic(means.tolist()).std, "seeds" if seeds_differ(entry.runs) else "runs", len(means))
    run = entry.runs[0]
    for name, facts in run.summary.get("variation", {}).get(entry.method, {}).items():
        whole = run.summary.get("methods", {}).get(entry.method, {}).get(name, {}).get("n") == n
        if name.partition("@")[0] == measure.metric and _is(run, name, measure) and whole and facts.get("std"):
            return Spread(float(facts["std"]), str(facts["over"]), len(facts["means"]))
    return None


def _is(run: Run, name: str, measure: Measure) -> bool:
    facts = run.summary.get("metrics", {}).get(name, {})
    return (facts.get("protocol"), facts.get("border")) == (measure.protocol, measure.border)


def _costs(entry: Entry) -> None:
    """Seconds and memory: the mean of the runs, the most of them; of the runs' own methods alone."""
    timed = [run for run in entry.runs if run.timed and entry.method == run.method]
    seconds = [s for run in timed if (s := run.summary.get("seconds_per_image"))]
    memory = [b for run in timed if (b := run.summary.get("peak_memory_bytes"))]
    entry.seconds = sum(seconds) / len(seconds) if seconds else None
    entry.memory = max(memory) if memory else None


def _sets(entries: list[Entry], runs: list[Run], measures: dict[Measure, Column]) -> None:
    """Metrics of whole sets, such as FID; of different numbers of images in different columns."""
    for entry in entries:
        for run in entry.runs[:1]:
            for value in run.summary.get("of_sets", []):
                if value["value"] is None or own_label(run, entry.label, value["method"]) != entry.label:
                    continue
                if entry.label == BICUBIC and run.method != BICUBIC:
                    continue
                version = str(run.summary.get("versions", {}).get("pyiqa"))
                measure = Measure(value["metric"], "default", "RGB", 0, f"n = {value['n']}", "", version)
                measures.setdefault(measure, _column(measure, runs))
                entry.cells[measure] = Cell(float(value["value"]), int(value["n"]))


def _same_inputs(runs: Sequence[Run]) -> None:
    """Refuse runs whose baselines differ: their images do."""
    known: dict[tuple[str | int, ...], tuple[float, Run]] = {}
    for run in runs:
        for row in run.rows:
            if row.method != BICUBIC or row.metric.partition("@")[0] not in ("psnr", "ssim"):
                continue
            # Older rows state less, and are of the same images all the same.
            m = _measure(row)
            key = row.image, m.metric, m.protocol, m.channel, m.border, m.variant
            value, first = known.setdefault(key, (row.value, run))
            # Other builds round a pixel here and there.
            if abs(value - row.value) > 1e-3 * max(abs(value), abs(row.value)):
                raise UserError(
                    f"report: {first.folder} and {run.folder} are both of benchmark {run.benchmark}, but bicubic has "
                    f"{row.metric} {value:.4f} and {row.value:.4f} on {row.image}: their images differ; report them "
                    "apart, or evaluate both on the same files"
                )

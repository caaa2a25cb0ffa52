"""The published numbers of a benchmark, in the columns that hold the same metric by the same protocol."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from dit4sr.evaluation.published import Stated, reported, reported_seconds
from dit4sr.evaluation.reports.content import Measure, Quoted


def quote(benchmark: str, upscale: float, measures: Iterable[Measure]) -> list[Quoted]:
    """The published rows of a benchmark, values as printed; none where the columns hold none of its metrics."""
    found: dict[tuple[str, str], Quoted] = {}
    measures = list(measures)
    seconds = reported_seconds(benchmark)
    for number in reported(benchmark, upscale):
        key = number.method, number.source
        for measure in measures:
            if not _same(number.stated, measure):
                continue
            row = found.setdefault(key, Quoted(number.method, number.source, {}, (), seconds.get(number.method)))
            row.values[measure] = number.text
            note = number.stated.note
            if note and note not in row.notes:
                found[key] = replace(row, notes=(*row.notes, note))
    return _joined(list(found.values()))


def _joined(rows: list[Quoted]) -> list[Quoted]:
    """One row a method, naming all the tables that it comes from."""
    joined: dict[str, Quoted] = {}
    for row in rows:
        if (before := joined.get(row.method)) is None:
            joined[row.method] = row
            continue
        joined[row.method] = replace(
            before,
            source=f"{before.source}; {row.source}",
            values=before.values | row.values,
            notes=tuple(dict.fromkeys((*before.notes, *row.notes))),
        )
    return list(joined.values())


def _same(stated: Stated, measure: Measure) -> bool:
    return measure.metric in stated.metrics and (stated.protocol, stated.border) == (measure.protocol, measure.border)

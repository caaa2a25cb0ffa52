"""Rows of measurements, their statistics, and tables in CSV and Markdown."""

from __future__ import annotations

import csv
import math
from collections.abc import Collection, Iterable, Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from dit4sr.evaluation.metrics import Better
from dit4sr.files import write_atomically

ARROWS: Mapping[Better, str] = {"higher": "↑", "lower": "↓", "one": "→1"}


@dataclass(frozen=True)
class Row:
    """One metric of one image restored by one method: a row of per_image.csv."""

    image: str
    method: str
    metric: str
    value: float
    protocol: str
    channel: str
    border: int
    pyiqa: str
    seed: int


@dataclass(frozen=True)
class Statistic:
    """Over images: mean, standard deviation (n − 1 in the denominator; NaN for one image), and their number.

    Values that are not defined (NaN) are left out of all three.
    """

    mean: float
    std: float
    n: int


@dataclass(frozen=True)
class Column:
    """How a metric is shown and judged."""

    name: str
    better: Better
    digits: int


Summary = dict[str, dict[str, Statistic]]
"""Method → metric → statistic, in order of first appearance."""


def write_rows(path: Path, rows: Iterable[Row]) -> None:
    """Write rows as CSV, values at full precision."""
    with write_atomically(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, [f.name for f in fields(Row)], lineterminator="\n")
        writer.writeheader()
        writer.writerows(asdict(row) for row in rows)


def read_rows(path: Path) -> list[Row]:
    """Read what :func:`write_rows` wrote."""
    with path.open(newline="", encoding="utf-8") as file:
        return [
            Row(
                image=row["image"],
                method=row["method"],
                metric=row["metric"],
                value=float(row["value"]),
                protocol=row["protocol"],
                channel=row["channel"],
                border=int(row["border"]),
                pyiqa=row["pyiqa"],
                seed=int(row["seed"]),
            )
            for row in csv.DictReader(file)
        ]


def statistic(values: Iterable[float]) -> Statistic:
    """Mean, deviation and number of the values that are not NaN."""
    defined = [v for v in values if not math.isnan(v)]
    n = len(defined)
    mean = math.fsum(defined) / n if n else math.nan
    std = math.sqrt(math.fsum((v - mean) ** 2 for v in defined) / (n - 1)) if n > 1 else math.nan
    return Statistic(mean, std, n)


def summarise(rows: Iterable[Row]) -> Summary:
    """Statistics over the images, for each method and metric."""
    values: dict[str, dict[str, list[float]]] = {}
    for row in rows:
        values.setdefault(row.method, {}).setdefault(row.metric, []).append(row.value)
    return {m: {k: statistic(v) for k, v in metrics.items()} for m, metrics in values.items()}


def ranking(values: Mapping[str, float], better: Better) -> list[str]:
    """Names from best to worst; those without a value (NaN) are left out."""
    keys = {"higher": lambda v: -v, "lower": lambda v: v, "one": lambda v: abs(v - 1)}
    defined = {name: v for name, v in values.items() if not math.isnan(v)}
    return sorted(defined, key=lambda name: keys[better](defined[name]))


def markdown_table(
    values: Mapping[str, Mapping[str, float]],
    columns: Iterable[Column],
    *,
    first: str = "method",
    unranked: Collection[str] = (),
) -> str:
    """A Markdown table, padded so that it also reads well as it is.

    The best value of a column is **bold**, the second best *italic* (equal ones alike, as printed); with
    two ranked rows only the best is marked.

    Args:
        values: row → column → value; what is missing or NaN is shown as –.
        columns: which columns, in order.
        first: heading of the rows' names.
        unranked: rows that take no part in the ranking, such as controls.
    """
    columns = list(columns)
    cells = [[first, *(f"{c.name} {ARROWS[c.better]}" for c in columns)]]
    marks = {c.name: _marks(values, c, unranked) for c in columns}
    for row in values:
        texts = [_format(values[row].get(c.name, math.nan), c.digits) for c in columns]
        marked = (marks[c.name].get(row, "{}").format(t) for c, t in zip(columns, texts, strict=True))
        cells.append([row, *marked])
    widths = [max(len(line[i]) for line in cells) for i in range(len(columns) + 1)]
    lines = []
    for name, *numbers in cells:
        padded = (number.rjust(width) for number, width in zip(numbers, widths[1:], strict=True))
        lines.append("| " + " | ".join([name.ljust(widths[0]), *padded]) + " |")
    lines.insert(1, "|" + "|".join(["-" * (widths[0] + 2), *("-" * (w + 1) + ":" for w in widths[1:])]) + "|")
    return "\n".join(lines)


def _format(value: float, digits: int) -> str:
    return "–" if math.isnan(value) else f"{value:.{digits}f}"


def _marks(values: Mapping[str, Mapping[str, float]], column: Column, unranked: Collection[str]) -> dict[str, str]:
    # Ranked as printed, so that of two rows that show the same number neither looks better.
    shown = {
        row: float(_format(v, column.digits))
        for row, metrics in values.items()
        if row not in unranked and not math.isnan(v := metrics.get(column.name, math.nan))
    }
    order = ranking(shown, column.better)
    if len(order) < 2:
        return {}
    groups: list[list[str]] = []
    for row in order:
        if groups and shown[groups[-1][0]] == shown[row]:
            groups[-1].append(row)
        else:
            groups.append([row])
    marks = dict.fromkeys(groups[0], "**{}**")
    if len(order) > 2 and len(groups) > 1:
        marks |= dict.fromkeys(groups[1], "*{}*")
    return marks

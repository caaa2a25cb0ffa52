"""Rows of measurements, their statistics, and tables in CSV and Markdown."""

from __future__ import annotations

import csv
import math
from collections.abc import Collection, Iterable, Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from dit4sr.evaluation.catalogue import Better
from dit4sr.files import write_atomically

ARROWS: Mapping[Better, str] = {"higher": "↑", "lower": "↓", "one": "→1"}


@dataclass(frozen=True)
class Row:
    """One metric of one image restored by one method: a row of per_image.csv.

    Attributes:
        image, method, metric, value: NaN where the metric is not defined for the image.
        protocol, channel, border, variant, data_range: what the value depends on; see
            :class:`dit4sr.evaluation.metrics.Metric`.
        pyiqa: its version.
        seed: of the run.
        samples: restorations whose values were averaged.
        std: deviation of their values (n − 1 in the denominator); None for one.
    """

    image: str
    method: str
    metric: str
    value: float
    protocol: str
    channel: str
    border: int
    pyiqa: str
    seed: int
    variant: str = ""
    data_range: str = ""
    samples: int = 1
    std: float | None = None


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


def write_parquet(path: Path, rows: Iterable[Row]) -> None:
    """Write rows as Parquet, with the columns of the CSV file."""
    import pandas as pd

    frame = pd.DataFrame([asdict(row) for row in rows], columns=[f.name for f in fields(Row)])
    with write_atomically(path) as temporary:
        frame.to_parquet(temporary, index=False)


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
                variant=row.get("variant") or "",
                data_range=row.get("data_range") or "",
                samples=int(row.get("samples") or 1),
                std=float(row["std"]) if row.get("std") else None,
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
    """Statistics over the images, for each method and metric; an image's value is the mean over its seeds."""
    values: dict[str, dict[str, dict[str, list[float]]]] = {}
    for row in rows:
        values.setdefault(row.method, {}).setdefault(row.metric, {}).setdefault(row.image, []).append(row.value)
    return {
        method: {
            name: statistic(statistic(seeds).mean for seeds in images.values()) for name, images in metrics.items()
        }
        for method, metrics in values.items()
    }


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


def places(values: Mapping[str, float], column: Column) -> dict[str, int]:
    """1 for the rows with the best value, 2 for those with the second best; equal ones alike, as printed.

    Rows without a value (NaN) have no place; of one row alone nothing is said, and of two the second has none.
    """
    # Ranked as printed, so that of two rows that show the same number neither looks better.
    shown = {row: float(_format(v, column.digits)) for row, v in values.items() if not math.isnan(v)}
    order = ranking(shown, column.better)
    if len(order) < 2:
        return {}
    keys = {row: round(abs(shown[row] - 1), column.digits) if column.better == "one" else shown[row] for row in order}
    distinct = list(dict.fromkeys(keys[row] for row in order))
    ranked = distinct[: 2 if len(order) > 2 else 1]
    return {row: ranked.index(keys[row]) + 1 for row in order if keys[row] in ranked}


def _marks(values: Mapping[str, Mapping[str, float]], column: Column, unranked: Collection[str]) -> dict[str, str]:
    taking_part = {row: metrics.get(column.name, math.nan) for row, metrics in values.items() if row not in unranked}
    return {row: {1: "**{}**", 2: "*{}*"}[place] for row, place in places(taking_part, column).items()}

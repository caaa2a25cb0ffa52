"""Figures of a report: perception against distortion, and every metric as bars."""

from __future__ import annotations

import io
import math
from typing import TYPE_CHECKING, Any

from dit4sr.evaluation.reports.content import BenchmarkTable, Cell, Entry, Measure
from dit4sr.evaluation.reports.layout import headings, number, title_of_table
from dit4sr.evaluation.tables import ARROWS

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#6a3d9a", "#8c564b")
"""Told apart by the colour-blind (Okabe and Ito, 2008), and two more."""
GREY, INK, FAINT = "#7a8490", "#1c2430", "#c9d0d8"
MARKERS = "osD^vPX*"
PERCEPTION = ("musiq", "lpips", "dists", "maniqa-pipal", "clipiqa+_vitL14_512", "niqe")
"""Looked for in this order."""

Box = tuple[float, float, float, float]

OFFSETS = (
    *((9, dy, "left") for dy in (0, 11, -11)),
    *((-9, dy, "right") for dy in (0, 11, -11)),
    *((0, dy, "center") for dy in (17, -17, 30, -30)),
    *((dx, dy, side) for dy in (22, -22) for dx, side in ((9, "left"), (-9, "right"))),
)
"""Of a label from its point, in pixels: those that are preferred first."""

Bytes = dict[str, bytes]
"""Format (png, pdf) → file."""


def perception_distortion(table: BenchmarkTable) -> tuple[str, Bytes] | str:
    """PSNR against a perceptual metric (arXiv 1711.06077), better towards the top right.

    Returns:
        A title and the files, or why there is none.
    """
    x = _first(table, "psnr")
    y = next((m for name in PERCEPTION if (m := _first(table, name)) is not None), None)
    if x is None or y is None:
        what = "PSNR" if x is None else "perceptual metric (MUSIQ, LPIPS, …)"
        return f"{table.name}: no perception–distortion plot, for no {what} was measured"
    names = headings(table)
    figure = _figure(7.2, 5.2)
    axes = figure.subplots()
    labels: list[tuple[float, float, str, str]] = []
    lines: list[Box] = []
    for i, e in enumerate(_entries(table)):
        if x in e.cells and y in e.cells:
            at = e.cells[x].value, e.cells[y].value
            colour = COLOURS[i % len(COLOURS)]
            across, along = _error(e.cells[x]), _error(e.cells[y])
            lines += [(at[0] - across[0][0], at[1], at[0] + across[1][0], at[1])] if across else []
            lines += [(at[0], at[1] - along[0][0], at[0], at[1] + along[1][0])] if along else []
            marker = MARKERS[i // len(COLOURS) % len(MARKERS)]
            style: dict[str, Any] = {
                "fmt": marker,
                "color": colour,
                "ms": 8,
                "elinewidth": 1.1,
                "capsize": 2.5,
                "zorder": 3,
            }
            axes.errorbar(*at, xerr=across, yerr=along, **style)
            labels.append((*at, e.label, colour))
    for q in table.quoted:
        if x in q.values and y in q.values:
            at = float(q.values[x]), float(q.values[y])
            axes.plot(*at, "o", mfc="none", mec=GREY, ms=6, zorder=3.5)
            labels.append((*at, q.method, GREY))
    axes.margins(0.14, 0.14)
    for measure, axis in ((x, "x"), (y, "y")):
        better = table.measures[measure].better
        getattr(axes, f"set_{axis}label")(f"{names[measure]}  (better {'→' if axis == 'x' else '↑'})")
        if better == "lower":
            getattr(axes, f"invert_{axis}axis")()
    _tidy(axes)
    _place_labels(axes, labels, lines)
    axes.set_title(f"{title_of_table(table)}: perception against distortion", loc="left", fontsize=11)
    said = "filled: measured here, with confidence intervals over images"
    if any(x in q.values and y in q.values for q in table.quoted):
        said += "    ○ reported in the paper, not measured here"
    figure.supxlabel(said, fontsize=8.5, color=GREY, x=0.01, ha="left")
    return f"{table.name}: {names[x]} against {names[y]}", _files(figure)


def bars(table: BenchmarkTable) -> tuple[str, Bytes] | str:
    """One panel a metric, one bar a measured method, with its confidence interval."""
    measures = [m for m in table.measures if any(m in e.cells for e in table.entries)]
    entries = _entries(table)
    if not measures:
        return f"{table.name}: no bar plot, for nothing was measured"
    names = headings(table)
    columns = 2 if len(measures) == 4 else min(3, len(measures))
    rows = math.ceil(len(measures) / columns)
    figure = _figure(1.6 + 3.1 * columns, 0.7 + rows * (0.75 + 0.3 * len(entries)))
    grid = figure.subplots(rows, columns, squeeze=False, sharey=True)
    for panel, axes in enumerate(grid.flat):
        if panel >= len(measures):
            axes.set_visible(False)
            continue
        measure, column = measures[panel], table.measures[measures[panel]]
        reach = 0.0
        for i, e in enumerate(entries):
            if (cell := e.cells.get(measure)) is None:
                axes.text(0, i, " –", va="center", color=GREY)
                continue
            error = _error(cell)
            colour = COLOURS[i % len(COLOURS)]
            axes.barh(i, cell.value, height=0.62, color=colour, alpha=0.85 if e.ranked else 0.35, zorder=2)
            axes.errorbar(cell.value, i, xerr=error, fmt="none", ecolor=INK, elinewidth=1, capsize=2.5, zorder=3)
            end = cell.value + (error[1][0] if error else 0)
            weight = "bold" if e.places.get(measure) == 1 else "normal"
            text = number(cell.value, column.digits)
            axes.annotate(
                text, (end, i), (4, 0), textcoords="offset points", va="center", fontsize=8.5, fontweight=weight
            )
            reach = max(reach, end)
        if column.better == "one":
            axes.axvline(1, color=INK, lw=0.9, ls=(0, (4, 3)), zorder=1)
            reach = max(reach, 1)
        axes.set_xlim(left=min(0.0, axes.get_xlim()[0]), right=reach * 1.3 or 1)
        axes.set_title(f"{names[measure]} {ARROWS[column.better]}", loc="left", fontsize=10)
        axes.set_yticks(range(len(entries)), [_short(e.label) for e in entries])
        axes.set_ylim(len(entries) - 0.4, -0.6)
        axes.tick_params(axis="y", length=0)
        _tidy(axes, grid="x")
    figure.suptitle(
        f"{title_of_table(table)}: means over images, with confidence intervals; bold: best",
        x=0.01,
        ha="left",
        fontsize=11,
    )
    return f"{table.name}: every metric as bars", _files(figure)


def _entries(table: BenchmarkTable) -> list[Entry]:
    return [e for e in table.entries if e.cells]


def _first(table: BenchmarkTable, name: str) -> Measure | None:
    """The metric's column, that by the published protocol first."""
    found = [m for m in table.measures if m.metric == name and any(m in e.cells for e in table.entries)]
    found.sort(key=lambda m: (m.protocol not in ("ycbcr", "default"), m.border))
    return found[0] if found else None


def _error(cell: Cell) -> list[list[float]] | None:
    if cell.interval is None or math.isnan(cell.interval.low):
        return None
    return [[max(0.0, cell.value - cell.interval.low)], [max(0.0, cell.interval.high - cell.value)]]


def _short(label: str) -> str:
    return label if len(label) <= 30 else f"{label[:14]}…{label[-15:]}"


def _figure(width: float, height: float) -> Figure:
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def _tidy(axes: Axes, grid: str = "both") -> None:
    axes.grid(axis=grid, color=FAINT, lw=0.6, alpha=0.7, zorder=0)  # type: ignore[arg-type]
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(GREY)
    axes.tick_params(colors=INK, labelsize=8.5)


def _place_labels(axes: Axes, labels: list[tuple[float, float, str, str]], lines: list[Box]) -> None:
    """Each label beside its point, where it covers the least of the points, the error bars and the other labels.

    Args:
        labels: x, y, text and colour.
        lines: error bars, as (left, bottom, right, top).
    """
    from matplotlib.patheffects import withStroke

    figure = axes.figure
    figure.draw_without_rendering()  # type: ignore[union-attr]
    per_point = figure.dpi / 72
    size = 8.5 * per_point
    pixels = [axes.transData.transform((x, y)) for x, y, _, _ in labels]
    frame = axes.get_window_extent()
    taken: list[Box] = [(px - 7, py - 7, px + 7, py + 7) for px, py in pixels]
    for left, bottom, right, top in lines:
        (x0, x1), (y0, y1) = map(sorted, zip(*axes.transData.transform([(left, bottom), (right, top)]), strict=True))
        taken.append((x0 - 3, y0 - 3, x1 + 3, y1 + 3))
    for (px, py), (x, y, label, colour) in zip(pixels, labels, strict=True):
        text = _short(label)
        width, height = 0.62 * size * len(text), 1.2 * size
        choices = []
        for order, (dx, dy, align) in enumerate(OFFSETS):
            start = px + dx - {"left": 0, "right": width, "center": width / 2}[align]
            box = (start, py + dy - height / 2, start + width, py + dy + height / 2)
            out = max(0, frame.x0 - box[0]) + max(0, box[2] - frame.x1)
            out += max(0, frame.y0 - box[1]) + max(0, box[3] - frame.y1)
            choices.append((sum(_overlap(box, other) for other in taken) + 1e3 * out, order, dx, dy, align, box))
        _, _, dx, dy, align, box = min(choices, key=lambda c: c[:2])
        taken.append(box)
        axes.annotate(
            text,
            (x, y),
            (dx / per_point, dy / per_point),
            textcoords="offset points",
            ha=align,
            va="center",
            fontsize=8.5,
            color=colour,
            path_effects=[withStroke(linewidth=2.5, foreground="white")],
            zorder=4,
        )


def _overlap(a: Box, b: Box) -> float:
    return max(0, min(a[2], b[2]) - max(a[0], b[0])) * max(0, min(a[3], b[3]) - max(a[1], b[1]))


def _files(figure: Figure) -> Bytes:
    found = {}
    options: dict[str, Any]
    for kind, options in (("png", {"dpi": 160}), ("pdf", {"metadata": {"CreationDate": None}})):
        buffer = io.BytesIO()
        figure.savefig(buffer, format=kind, **options)
        found[kind] = buffer.getvalue()
    return found

"""A report as grids of words: what Markdown, LaTeX and HTML then write each in its own way."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Literal

from dit4sr.evaluation.reports.content import BenchmarkTable, Cell, Comparison, Entry, Measure
from dit4sr.evaluation.reports.merging import Options
from dit4sr.evaluation.reports.resampling import FEW
from dit4sr.evaluation.tables import ARROWS, Column

TITLES = {
    "psnr": "PSNR",
    "ssim": "SSIM",
    "ms_ssim": "MS-SSIM",
    "lpips": "LPIPS",
    "lpips-vgg": "LPIPS-VGG",
    "dists": "DISTS",
    "musiq": "MUSIQ",
    "maniqa": "MANIQA",
    "maniqa-pipal": "MANIQA-PIPAL",
    "clipiqa": "CLIPIQA",
    "clipiqa+": "CLIPIQA+",
    "clipiqa+_vitL14_512": "CLIPIQA+ ViT-L/14",
    "liqe": "LIQE",
    "liqe_mix": "LIQE-mix",
    "niqe": "NIQE",
    "fid": "FID",
    "gradient_energy": "gradient energy",
}
"""pyiqa's name → the papers'; others are shown as they are."""

NOTHING = "–"

MEASURED, REPORTED = "measured", "reported"


@dataclass(frozen=True)
class Item:
    """A cell: its text, its place (1 the best, 2 the second best, 0 neither), and what follows it unmarked."""

    text: str
    place: int = 0
    aside: str = ""


@dataclass(frozen=True)
class Line:
    """A row of a grid."""

    kind: Literal["measured", "reported"]
    items: list[Item]


@dataclass(frozen=True)
class Grid:
    """A table: the first ``names`` columns hold words, the others numbers."""

    title: str
    header: list[str]
    lines: list[Line]
    names: int = 1


@dataclass(frozen=True)
class Section:
    """One benchmark: its table, further ones, and the lines without which the numbers mean little."""

    title: str
    grids: list[Grid]
    notes: list[str]


def sections(tables: Sequence[BenchmarkTable], options: Options) -> list[Section]:
    """One for each benchmark."""
    return [
        Section(
            title_of_table(t),
            [main_grid(t), *_intervals(t, options), *_compared(t)],
            _notes(t, options),
        )
        for t in tables
    ]


def title_of_table(table: BenchmarkTable) -> str:
    """Of the section: benchmark and factor."""
    return f"{table.name}, ×{table.upscale:g}"


def headings(table: BenchmarkTable) -> dict[Measure, str]:
    """Measure → heading; those of one metric say in what they differ."""
    found = {}
    for measure in table.measures:
        alike = [m for m in table.measures if m.metric == measure.metric]
        differing = [f.name for f in fields(Measure) if len({getattr(m, f.name) for m in alike}) > 1]
        words = [
            _detail(name, getattr(measure, name)) for name in differing if name != "channel" or len(differing) == 1
        ]
        found[measure] = title_of(measure) + (f" ({', '.join(words)})" if words else "")
    return found


def title_of(measure: Measure) -> str:
    """The metric's name in papers."""
    return TITLES.get(measure.metric, measure.metric)


def main_grid(table: BenchmarkTable) -> Grid:
    """Measured rows, then reported ones."""
    with_seeds = any(e.seeds is not None for e in table.entries)
    with_seconds = any(e.seconds is not None for e in table.entries)
    with_memory = any(e.memory is not None for e in table.entries)
    header = ["method", "source", *(["seeds"] if with_seeds else [])]
    header += [f"{h} {ARROWS[table.measures[m].better]}" for m, h in headings(table).items()]
    header += [*(["s/image"] if with_seconds else []), *(["peak memory"] if with_memory else [])]
    lines = []
    for e in table.entries:
        items = [Item(e.label), Item(MEASURED)]
        if with_seeds:
            items.append(Item(NOTHING if e.seeds is None else str(e.seeds)))
        items += [_cell(e.cells.get(m), column, e.places.get(m, 0)) for m, column in table.measures.items()]
        if with_seconds:
            items.append(Item(NOTHING if e.seconds is None else f"{e.seconds:.3g}"))
        if with_memory:
            items.append(Item(NOTHING if e.memory is None else memory_text(e.memory)))
        lines.append(Line("measured", items))
    for q in table.quoted:
        items = [Item(q.method), Item(REPORTED), *([Item(NOTHING)] if with_seeds else [])]
        items += [Item(q.values.get(m, NOTHING)) for m in table.measures]
        items += [Item(q.seconds or NOTHING)] if with_seconds else []
        items += [Item(NOTHING)] if with_memory else []
        lines.append(Line("reported", items))
    return Grid("", header, lines, names=2)


def number(value: float, digits: int, *, signed: bool = False) -> str:
    """With that many digits; a typographic minus."""
    if not math.isfinite(value):
        return NOTHING
    return f"{value:{'+' if signed else ''}.{digits}f}".replace("-", "−")


def p_text(p: float) -> str:
    """A p value as it is printed."""
    return "p < 0.001" if p < 0.001 else f"p = {p:.3f}"


def memory_text(size: int) -> str:
    """Bytes in GiB or MiB."""
    return f"{size / 2**30:.2f} GiB" if size >= 2**30 else f"{size / 2**20:.0f} MiB"


def _cell(cell: Cell | None, column: Column, place: int) -> Item:
    if cell is None:
        return Item(NOTHING)
    aside = f"± {number(cell.spread.std, column.digits)}" if cell.spread else ""
    return Item(number(cell.value, column.digits), place, aside)


def _intervals(table: BenchmarkTable, options: Options) -> list[Grid]:
    lines = []
    shown = [m for m in table.measures if any(_bounds(e, m, table.measures[m]) for e in table.entries)]
    for e in table.entries:
        texts = [(e.cells.get(m), _bounds(e, m, table.measures[m])) for m in shown]
        items = [
            Item(number(cell.value, table.measures[m].digits) if cell else NOTHING, 0, bounds)
            for m, (cell, bounds) in zip(shown, texts, strict=True)
        ]
        lines.append(Line("measured", [Item(e.label), *items]))
    names = headings(table)
    title = f"{100 * options.confidence:g}% confidence intervals"
    return [Grid(title, ["method", *(names[m] for m in shown)], lines)] if shown else []


def _bounds(entry: Entry, measure: Measure, column: Column) -> str:
    cell = entry.cells.get(measure)
    if cell is None or cell.interval is None or math.isnan(cell.interval.low):
        return ""
    return f"[{number(cell.interval.low, column.digits)}, {number(cell.interval.high, column.digits)}]"


def _compared(table: BenchmarkTable) -> list[Grid]:
    shown = [m for m in table.measures if any(m in e.compared for e in table.entries)]
    if not shown:
        return []
    lines = []
    for e in table.entries:
        if e.compared:
            items = [_difference(e.compared.get(m), table.measures[m]) for m in shown]
            lines.append(Line("measured", [Item(e.label), *items]))
    names = headings(table)
    title = f"Difference to {table.reference}, paired by image"
    return [Grid(title, ["method", *(f"{names[m]} {ARROWS[table.measures[m].better]}" for m in shown)], lines)]


def _difference(found: Comparison | None, column: Column) -> Item:
    if found is None:
        return Item(NOTHING)
    low, high = (number(v, column.digits, signed=True) for v in (found.interval.low, found.interval.high))
    return Item(number(found.difference, column.digits, signed=True), 0, f"[{low}, {high}], {p_text(found.adjusted)}")


def _notes(table: BenchmarkTable, options: Options) -> list[str]:
    counts = sorted({cell.n for e in table.entries for cell in e.cells.values()})
    images = f"{counts[0]}" if counts[0] == counts[-1] else f"{counts[0]} to {counts[-1]}"
    notes = [
        f"means over {images} images; marked: the best and the second best of the measured rows, as printed"
        + ("; reported values take no part" if table.quoted else ""),
        *(f"{h}: {_what(m)}; {_count(table, m)} images" for m, h in headings(table).items()),
        *table.notes,
    ]
    if any(c.interval for e in table.entries for c in e.cells.values()) and counts[-1] > 1:
        notes.append(
            f"[ ]: {100 * options.confidence:g}% confidence intervals of the mean by BCa bootstrap over images "
            f"({options.resamples} resamples, seed {options.seed}); the variation between seeds is not in them"
            + (f"; over fewer than {FEW} images they are rough" if counts[0] < FEW else "")
        )
    if any(e.compared for e in table.entries):
        notes.append(
            f"differences are row minus {table.reference}; p: two-sided sign-flip permutation test over the common "
            "images, adjusted for the comparisons of a column (Holm)"
        )
    notes += _spreads(table)
    notes += [_about(e) for e in table.entries]
    sources: dict[str, list[str]] = {}
    for q in table.quoted:
        sources.setdefault(q.source, []).append(q.method)
    notes += [f"reported, not measured here ({source}): {', '.join(names)}" for source, names in sources.items()]
    notes += dict.fromkeys(f"reported: {note}" for q in table.quoted for note in q.notes)
    if any(q.seconds for q in table.quoted) and any(e.seconds is not None for e in table.entries):
        notes.append("reported s/image: on an A100 80 GB, 128×128 → 512×512; not comparable with other machines")
    notes += dict.fromkeys(_lacking(table))
    return notes


def _spreads(table: BenchmarkTable) -> list[str]:
    notes = []
    for e in table.entries:
        spreads = {(c.spread.count, c.spread.over) for c in e.cells.values() if c.spread}
        for count, over in sorted(spreads):
            notes.append(f"{e.label}: ± is the deviation of the mean over {count} {over}")
        if e.seeds == 1 and not any(over == "seeds" for _, over in spreads):
            notes.append(f"{e.label}: one seed; how its means vary from seed to seed is not known")
    return notes


def _what(m: Measure) -> str:
    parts = [m.metric, "" if m.protocol == "default" else f"protocol {m.protocol}", f"on {m.channel}"]
    parts += [f"border {m.border}" if m.border or m.protocol != "default" else "", m.variant]
    parts += [f"data range {m.data_range}" if m.data_range else "", f"pyiqa {m.pyiqa}"]
    return ", ".join(part for part in parts if part)


def _count(table: BenchmarkTable, m: Measure) -> int:
    return max((e.cells[m].n for e in table.entries if m in e.cells), default=0)


def _detail(name: str, value: object) -> str:
    if name in ("protocol", "channel"):
        return str(value)
    if name == "variant":
        return str(value) or "variant not stated"
    return f"{name.replace('_', ' ')} {value if value != '' else 'not stated'}"


def _about(entry: Entry) -> str:
    words = [", ".join(dict.fromkeys(run.folder.as_posix() for run in entry.runs))]
    if entry.runs[0].method == entry.method:
        for run in entry.runs:
            facts, said = run.facts, []
            if "ckpt" in facts:
                said.append(f"{facts['ckpt']} at step {facts.get('step')}")
                sampler = facts.get("sampler") or {}
                said += [f"{sampler['steps']} steps"] if "steps" in sampler else []
                said += [f"guidance {sampler['guidance']:g}"] if "guidance" in sampler else []
            said += [f"images of {facts['path']}"] if "path" in facts and "architecture" not in facts else []
            said += [f"{facts['architecture']}, {facts['path']}"] if "architecture" in facts else []
            if run.timed and facts.get("device"):
                said.append(f"timed on {facts['device']}")
            words += [", ".join(said)] if said else []
    return f"{entry.label}: " + "; ".join(dict.fromkeys(words))


def _lacking(table: BenchmarkTable) -> list[str]:
    """What the runs themselves said of their numbers."""
    notes = []
    for e in table.entries:
        for run in e.runs if e.runs[0].method == e.method else []:
            names = [m["metric"] for m in run.summary.get("missing", [])]
            notes += [f"{e.label}: without {', '.join(names)} (weights were missing)"] if names else []
            notes += [f"{e.label}: let pass: {note}" for note in run.summary["benchmark"].get("notes", [])]
            skipped = run.summary.get("skipped", [])
            notes += [f"{e.label}: {len(skipped)} images were skipped"] if skipped else []
            for value in run.summary.get("of_sets", []):
                notes += [f"{e.label}: {value['warning']} (n = {value['n']})"] if value.get("warning") else []
    return notes

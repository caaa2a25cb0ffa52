"""Grids as Markdown and LaTeX, and all numbers as CSV."""

from __future__ import annotations

import csv
import io
import re
import unicodedata
from collections.abc import Sequence

from dit4sr.evaluation.reports.content import BenchmarkTable, Measure
from dit4sr.evaluation.reports.layout import Grid, Item, Line, Section
from dit4sr.evaluation.reports.merging import Options

# fmt: off
COLUMNS = (
    "benchmark", "upscale", "method", "source", "metric", "value", "images", "low", "high", "confidence", "std",
    "std_over", "std_count", "seeds", "place", "difference", "difference_low", "difference_high", "against", "p",
    "p_holm", "seconds_per_image", "peak_memory_bytes", "protocol", "channel", "border", "variant", "data_range",
    "pyiqa", "origin",
)
"""Of table.csv."""
# fmt: on


def markdown(found: Sequence[Section]) -> str:
    """All sections; the best in bold, the second best in italics."""
    parts = []
    for section in found:
        parts.append(f"## {_md(section.title)}")
        for grid in section.grids:
            parts += [f"### {_md(grid.title)}"] if grid.title else []
            parts.append(_markdown_grid(grid))
        parts.append("\n".join(f"- {_md(note)}" for note in section.notes))
    return "\n\n".join(parts) + "\n"


def _markdown_grid(grid: Grid) -> str:
    marks = {0: "{}", 1: "**{}**", 2: "*{}*"}
    cells = [[_md(text) for text in grid.header]]
    for line in grid.lines:
        cells.append([f"{marks[i.place].format(_md(i.text))} {_md(i.aside)}".strip() for i in line.items])
    widths = [max(3, *(len(row[c]) for row in cells)) for c in range(len(grid.header))]
    rule = "|".join("-" * (w + 2) if c < grid.names else "-" * (w + 1) + ":" for c, w in enumerate(widths))
    lines = [
        "| "
        + " | ".join(
            t.ljust(w) if c < grid.names else t.rjust(w) for c, (t, w) in enumerate(zip(row, widths, strict=True))
        )
        + " |"
        for row in cells
    ]
    return "\n".join([lines[0], f"|{rule}|", *lines[1:]])


def latex(found: Sequence[Section]) -> str:
    """One ``table`` environment a grid, no wider than the text; bold and underlined.

    For ``\\usepackage{booktabs,graphicx}``.
    """
    parts = [
        "% Needs \\usepackage{booktabs,graphicx}. Best in bold, second best underlined, of the measured rows alone."
    ]
    for section in found:
        for number, grid in enumerate(section.grids):
            caption = section.title + (f": {grid.title}" if grid.title else "")
            label = re.sub(r"[^a-zA-Z0-9]+", "-", section.title).strip("-") + (f"-{number}" if number else "")
            notes = [f"% {' '.join(note.split())}" for note in section.notes] if number == 0 else []
            parts.append("\n".join([*notes, *_latex_grid(grid, caption, label)]))
    return "\n\n".join(parts) + "\n"


def _latex_grid(grid: Grid, caption: str, label: str) -> list[str]:
    # The source is said by the groups' headings.
    kept = [c for c, name in enumerate(grid.header) if name != "source"]
    lines = [
        "\\begin{table}[t]",
        "\\centering\\small\\setlength{\\tabcolsep}{4pt}",
        f"\\caption{{{_tex(caption)}}}\\label{{tab:{label}}}",
        "\\resizebox{\\ifdim\\width>\\linewidth\\linewidth\\else\\width\\fi}{!}{%",
        "\\begin{tabular}{" + "".join("l" if c < grid.names else "r" for c in kept) + "}",
        "\\toprule",
        " & ".join(_tex(grid.header[c]) for c in kept) + " \\\\",
    ]
    groups = list(dict.fromkeys(line.kind for line in grid.lines))
    for kind in groups:
        lines.append("\\midrule")
        if len(groups) > 1:
            lines += [f"\\multicolumn{{{len(kept)}}}{{l}}{{\\textit{{{kind}}}}} \\\\"]
        lines += [_latex_line(line, kept) for line in grid.lines if line.kind == kind]
    return [*lines, "\\bottomrule", "\\end{tabular}}", "\\end{table}"]


def _latex_line(line: Line, kept: Sequence[int]) -> str:
    return " & ".join(_latex_item(line.items[c]) for c in kept) + " \\\\"


def _latex_item(item: Item) -> str:
    marked = {0: "{}", 1: "\\textbf{{{}}}", 2: "\\underline{{{}}}"}[item.place].format(_tex(item.text))
    return f"{marked} {{\\scriptsize {_tex(item.aside)}}}" if item.aside else marked


def csv_text(tables: Sequence[BenchmarkTable], options: Options) -> str:
    """All numbers at full precision, one a line, measured and reported told apart by ``source``."""
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, restval="", lineterminator="\n")
    writer.writeheader()
    for table in tables:
        common: dict[str, object] = {"benchmark": table.name, "upscale": f"{table.upscale:g}"}
        for e in table.entries:
            for measure, cell in e.cells.items():
                row = common | _identity(measure) | {"method": e.label, "source": "measured", "value": cell.value}
                row |= {"images": cell.n, "seeds": e.seeds, "place": e.places.get(measure)}
                row |= {"seconds_per_image": e.seconds, "peak_memory_bytes": e.memory}
                if cell.interval:
                    row |= {"low": cell.interval.low, "high": cell.interval.high, "confidence": options.confidence}
                if cell.spread:
                    row |= {"std": cell.spread.std, "std_over": cell.spread.over, "std_count": cell.spread.count}
                if (c := e.compared.get(measure)) is not None:
                    row |= {"difference": c.difference, "difference_low": c.interval.low}
                    row |= {
                        "difference_high": c.interval.high,
                        "against": table.reference,
                        "p": c.p,
                        "p_holm": c.adjusted,
                    }
                row["origin"] = "; ".join(run.folder.as_posix() for run in e.runs)
                writer.writerow({k: "" if v is None or v != v else v for k, v in row.items()})
        for q in table.quoted:
            for measure, value in q.values.items():
                row = common | {"method": q.method, "source": "reported", "metric": measure.metric, "value": value}
                # Of the paper no more is known.
                row |= {"protocol": measure.protocol, "border": measure.border, "channel": measure.channel}
                writer.writerow(row | {"origin": q.source, "seconds_per_image": q.seconds or ""})
    return text.getvalue()


def _identity(m: Measure) -> dict[str, object]:
    return dict(vars(m))


def _md(text: str) -> str:
    """Escaped where Markdown would read more than the words."""
    text = re.sub(r"[\\\\`*|]", r"\\\g<0>", " ".join(text.split()))
    text = re.sub(r"(?<![^\W_])_|_(?![^\W_])", r"\\_", text)
    return re.sub(r"<(?=[a-zA-Z/!?])|(?<=\])\(", r"\\\g<0>", text)


TEX = {
    "\\": "\\textbackslash{}",
    "|": "\\textbar{}",  # a dash in TeX's own font encoding
    "[": "{[}",  # after a row's end it would begin an option
    "↑": "$\\uparrow$",
    "↓": "$\\downarrow$",
    "→": "$\\rightarrow$",
    "×": "$\\times$",
    "±": "$\\pm$",
    "−": "$-$",
    "–": "--",
    "<": "$<$",
    ">": "$>$",
    "~": "\\textasciitilde{}",
    "^": "\\textasciicircum{}",
    **{c: "\\" + c for c in "&%$#_{}"},
}


def _tex(text: str) -> str:
    return "".join(TEX.get(c) or (c if ord(c) < 0x250 else _formula(c)) for c in " ".join(text.split()))


GREEK = re.compile(
    r"GREEK (SMALL LETTER (?!OMICRON)(?=\w+$)|CAPITAL LETTER (?=GAMMA|DELTA|THETA|LAMDA|XI|PI|SIGMA|P[HS]I|OMEGA))"
)


def _formula(c: str) -> str:
    """A letter or index that LaTeX knows in formulas alone; other signs as they are."""
    name = unicodedata.name(c, "")
    if match := GREEK.match(name):
        word = name.rpartition(" ")[2].replace("LAMDA", "LAMBDA").lower()
        return f"$\\{word if 'SMALL' in match[0] else word.capitalize()}$"
    kind, _, code = unicodedata.decomposition(c).partition(" ")
    if kind in ("<sub>", "<super>"):
        return f"${'_' if kind == '<sub>' else '^'}{{{chr(int(code, 16))}}}$"
    return c

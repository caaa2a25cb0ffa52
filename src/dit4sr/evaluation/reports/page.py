"""A report as one HTML file that needs nothing beside it: no script, no font, no network."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from html import escape

from dit4sr.evaluation.reports.layout import NOTHING, Grid, Item, Section

STYLE = """
:root { color-scheme: light dark; --ink: #1c2430; --faint: #5d6878; --line: #d9dfe7; --paper: #fff; --band: #f4f6f9;
  --best: #0b6b3a; --best-paper: #e2f4e9; --second-paper: #eef3fb; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6eaf0; --faint: #9aa5b5; --line: #333c49; --paper: #14181e;
  --band: #1b2129; --best: #7fe0a8; --best-paper: #17372a; --second-paper: #1d2a3d; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 32px 24px 64px; max-width: 1280px; background: var(--paper); color: var(--ink);
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "DejaVu Sans", sans-serif; }
h1 { font-size: 26px; line-height: 1.2; margin: 0 0 4px; }
h2 { font-size: 20px; margin: 44px 0 10px; padding-top: 16px; border-top: 2px solid var(--line); }
h3 { font-size: 15px; margin: 28px 0 8px; }
.lead, .key { color: var(--faint); margin: 0 0 8px; font-size: 13.5px; }
nav a { color: inherit; margin-right: 16px; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; white-space: nowrap; min-width: 40%; }
th, td { padding: 6px 10px; text-align: right; }
thead th { border-top: 2px solid var(--ink); border-bottom: 1px solid var(--ink); font-weight: 600;
  white-space: normal; vertical-align: bottom; }
tbody tr:hover td, tbody tr:hover th { background: var(--band); }
tbody { border-bottom: 1px solid var(--line); }
tbody:last-child { border-bottom: 2px solid var(--ink); }
.words { text-align: left; font-weight: 500; }
tbody th.words:first-child, thead th.words:first-child { position: sticky; left: 0; background: var(--paper); }
.reported td, .reported th { color: var(--faint); font-style: italic; }
.group th { text-align: left; font-size: 12px; letter-spacing: .06em; text-transform: uppercase; color: var(--faint);
  font-weight: 600; font-style: normal; padding-top: 12px; }
.first strong { color: var(--best); background: var(--best-paper); padding: 1px 5px; border-radius: 4px; }
.second span.value { text-decoration: underline; text-underline-offset: 3px; background: var(--second-paper);
  padding: 1px 5px; border-radius: 4px; }
.aside { color: var(--faint); font-size: 12px; display: block; }
figure { margin: 24px 0 0; background: #fff; border: 1px solid var(--line); border-radius: 8px; padding: 12px;
  display: inline-block; max-width: 100%; }
figure img { max-width: min(100%, 960px); height: auto; display: block; }
ul { padding-left: 20px; color: var(--faint); font-size: 13.5px; overflow-wrap: anywhere; margin-top: 16px; }
@media print { body { max-width: none; } figure { break-inside: avoid; } }
"""


def page(found: Sequence[Section], figures: Mapping[str, Sequence[tuple[str, bytes]]], lead: str) -> str:
    """The page.

    Args:
        found: sections, by benchmark.
        figures: section → pictures: what they show, and the PNG file's bytes.
        lead: a line below the title.
    """
    body = [f'<h1>Evaluation report</h1>\n<p class="lead">{escape(lead)}</p>']
    if len(found) > 1:
        links = "".join(f'<a href="#b{i}">{escape(s.title)}</a>' for i, s in enumerate(found))
        body.append(f"<nav>{links}</nav>")
    body.append(
        '<p class="key">Marked: <span class="first"><strong>best</strong></span> and '
        '<span class="second"><span class="value">second best</span></span> of the measured rows; '
        "reported values are the papers' and take no part.</p>"
    )
    for i, section in enumerate(found):
        body.append(f'<section id="b{i}">\n<h2>{escape(section.title)}</h2>')
        for number, grid in enumerate(section.grids):
            if grid.title:
                body.append(f"<h3>{escape(grid.title)}</h3>")
            body.append(_grid(grid))
            if number == 0:
                body += [_figure(title, data) for title, data in figures.get(section.title, ())]
        notes = "\n".join(f"<li>{escape(note)}</li>" for note in section.notes)
        body.append(f"<ul>\n{notes}\n</ul>\n</section>")
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>Evaluation report</title>\n<style>{STYLE}</style>\n</head>\n<body>\n"
        + "\n".join(body)
        + "\n</body>\n</html>\n"
    )


def _grid(grid: Grid) -> str:
    # The source is said by the groups' headings.
    kept = [c for c, name in enumerate(grid.header) if name != "source"]
    head = "".join(f'<th scope="col"{_words(c, grid)}>{escape(grid.header[c])}</th>' for c in kept)
    parts = [f"<thead><tr>{head}</tr></thead>"]
    kinds = list(dict.fromkeys(line.kind for line in grid.lines))
    for kind in kinds:
        rows = []
        if len(kinds) > 1:
            label = f'<th colspan="{len(kept)}" scope="rowgroup">{kind}</th>'
            rows.append(f'<tr class="group">{label}</tr>')
        for line in grid.lines:
            if line.kind == kind:
                cells = [_item(line.items[c], c, grid) for c in kept]
                rows.append(f'<tr class="{kind}">{"".join(cells)}</tr>')
        parts.append("<tbody>\n" + "\n".join(rows) + "\n</tbody>")
    body = "\n".join(parts)
    return f'<div class="scroll"><table>\n{body}\n</table></div>'


def _item(item: Item, column: int, grid: Grid) -> str:
    if column < grid.names:
        return f'<th scope="row" class="words">{escape(item.text)}</th>'
    aside = f' <span class="aside">{escape(item.aside)}</span>' if item.aside else ""
    if item.place == 1:
        return f'<td class="first"><strong>{escape(item.text)}</strong>{aside}</td>'
    if item.place == 2:
        return f'<td class="second"><span class="value">{escape(item.text)}</span>{aside}</td>'
    return f"<td>{escape(item.text) or NOTHING}{aside}</td>"


def _words(column: int, grid: Grid) -> str:
    return ' class="words"' if column < grid.names else ""


def _figure(title: str, data: bytes) -> str:
    source = base64.b64encode(data).decode("ascii")
    return f'<figure><img alt="{escape(title)}" src="data:image/png;base64,{source}"></figure>'

"""Tables of reports as they are written: golden files, and whether LaTeX and a browser could read them.

After a wanted change of the tables: DIT4SR_WRITE_GOLDEN=1 pytest tests/unit/test_report_tables.py, and read the diff.
"""

from __future__ import annotations

import csv
import io
import os
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from report_folders import GIVEN, OURS, QUICK, wave, write_run, write_runs

from dit4sr.evaluation.reports.formats import csv_text, latex, markdown
from dit4sr.evaluation.reports.layout import sections
from dit4sr.evaluation.reports.merging import Options, merge
from dit4sr.evaluation.reports.page import page
from dit4sr.evaluation.reports.runs import find_runs

GOLDEN = Path(__file__).parents[1] / "golden" / "report"


def test_golden_tables(here: Path) -> None:
    write_runs(here / "runs")
    options = Options()
    tables = merge(find_runs(GIVEN), options)
    found = sections(tables, options)
    texts = {
        "table.md": markdown(found),
        "table.tex": latex(found),
        "report.html": page(found, {}, "5 evaluations, 2 benchmarks"),
        "table.csv": csv_text(tables, options),
    }
    if os.environ.get("DIT4SR_WRITE_GOLDEN"):
        for name, text in texts.items():
            (GOLDEN / name).write_text(text, encoding="utf-8")
    for name in ("table.md", "table.tex", "report.html"):
        assert texts[name] == (GOLDEN / name).read_text(encoding="utf-8"), name
    # At full precision, where another machine's sums may round otherwise.
    ours, golden = (
        list(csv.DictReader(io.StringIO(t))) for t in (texts["table.csv"], (GOLDEN / "table.csv").read_text())
    )
    assert len(ours) == len(golden)
    for mine, wanted in zip(ours, golden, strict=True):
        assert mine.keys() == wanted.keys()
        for name, text in wanted.items():
            assert mine[name] == text or float(mine[name]) == pytest.approx(float(text), rel=1e-6, abs=1e-9), name


def test_the_golden_numbers_are_the_rows_means(here: Path) -> None:
    """What the golden files hold is right, not merely unchanged."""
    write_runs(here / "runs")
    rows = list(csv.DictReader(io.StringIO((GOLDEN / "table.csv").read_text())))
    (found,) = [r for r in rows if (r["benchmark"], r["method"], r["metric"]) == ("realsr", "dit4sr", "psnr")]
    per_seed = [[wave("psnr", OURS["psnr"], i, 0.5 + seed) for i in range(1, 13)] for seed in (0, 1)]
    # Every run has the one sampling seed 0, so only the phase of its training differs.
    assert float(found["value"]) == pytest.approx(np.mean(per_seed), abs=1e-9)
    assert float(found["std"]) == pytest.approx(np.std(np.mean(per_seed, axis=1), ddof=1), abs=1e-9)
    assert (found["std_over"], found["std_count"], found["seeds"], found["images"]) == ("seeds", "2", "2", "12")
    markdown_text = (GOLDEN / "table.md").read_text()
    assert f"{np.mean(per_seed):.2f} ± 0.01" in markdown_text


def test_html_is_whole_and_alone() -> None:
    class Checker(HTMLParser):
        def __init__(self) -> None:
            super().__init__()
            self.open: list[str] = []

        def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
            if tag not in ("meta", "img"):
                self.open.append(tag)
            for name, value in attrs:
                assert name not in ("src", "href") or str(value).startswith(("data:", "#"))

        def handle_endtag(self, tag: str) -> None:
            assert self.open.pop() == tag

    checker = Checker()
    checker.feed((GOLDEN / "report.html").read_text())
    assert checker.open == []


def compiled(folder: Path) -> str:
    """What LaTeX says of the folder's table.tex in an article."""
    (folder / "main.tex").write_text(
        "\\documentclass{article}\n\\usepackage{booktabs,graphicx}\n\\begin{document}\n\\input{table}\n\\end{document}\n"
    )
    command = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "main.tex"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stdout[-2000:]
    return done.stdout


without_latex = pytest.mark.skipif(shutil.which("pdflatex") is None, reason="there is no LaTeX here")


@without_latex
def test_the_latex_tables_compile_and_fit_the_text(tmp_path: Path) -> None:
    shutil.copy(GOLDEN / "table.tex", tmp_path)
    assert "Overfull" not in compiled(tmp_path)
    assert (tmp_path / "main.pdf").stat().st_size > 10_000


@without_latex
def test_names_of_any_signs_compile(here: Path) -> None:
    write_run(here / "a", r"50%_of|<b>#1 & {x}~^$\\\end[1] λ=0.5 α₂? é", OURS)
    tables = merge(find_runs(["a"]), QUICK)
    (here / "table.tex").write_text(latex(sections(tables, QUICK)), encoding="utf-8")
    assert "$\\lambda$=0.5 $\\alpha$" in (here / "table.tex").read_text()
    compiled(Path.cwd())

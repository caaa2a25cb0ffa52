"""Reports of many evaluations: golden tables, statistics against scipy, and what may not be mixed.

After a wanted change of the tables: DIT4SR_WRITE_GOLDEN=1 pytest tests/unit/test_reports.py, and read the diff.
"""

from __future__ import annotations

import csv
import io
import json
import math
import os
import re
import shutil
import subprocess
import sys
import time
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from report_folders import BASELINE, IMAGES, OURS, checkpoint, wave, write_run, write_runs

from dit4sr.errors import UserError
from dit4sr.evaluation.published import BENCHMARKS, METRICS, SOURCES, read_published, reported, reported_seconds
from dit4sr.evaluation.reports.content import BenchmarkTable
from dit4sr.evaluation.reports.figures import bars, perception_distortion
from dit4sr.evaluation.reports.formats import csv_text, latex, markdown
from dit4sr.evaluation.reports.layout import main_grid, sections
from dit4sr.evaluation.reports.merging import Options, merge
from dit4sr.evaluation.reports.page import page
from dit4sr.evaluation.reports.resampling import bootstrap, holm, paired_p
from dit4sr.evaluation.reports.run import report
from dit4sr.evaluation.reports.runs import find_runs

REPOSITORY = Path(__file__).parents[2]
GOLDEN = Path(__file__).parents[1] / "golden" / "report"
QUICK = Options(resamples=200)


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Folders in reports are as they were given: relative ones make the golden files the same everywhere."""
    monkeypatch.chdir(tmp_path)
    return Path()


def merged(*folders: Any, options: Options = QUICK) -> list[BenchmarkTable]:
    return merge(find_runs([str(folder) for folder in folders]), options)


def entry(table: BenchmarkTable, label: str) -> Any:
    return next(e for e in table.entries if e.label == label)


def values(table: BenchmarkTable, metric: str) -> dict[str, float]:
    (measure,) = [m for m in table.measures if m.metric == metric]
    return {e.label: e.cells[measure].value for e in table.entries if measure in e.cells}


# Golden files


GIVEN = ["runs/ours_*", "runs/controlnet", "OSEDiff & co.=runs/osediff", "runs/lq250"]


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


# Measured and reported


def test_reported_rows_take_no_part_in_the_ranking(here: Path) -> None:
    worst = {"psnr": 5.0, "musiq": 1.0}
    write_run(here / "a", "dit4sr", worst, bicubic={"psnr": 4.0, "musiq": 0.5}, facts=checkpoint())
    (table,) = merged("a")
    assert {q.method for q in table.quoted} >= {"DiT4SR", "SeeSR", "SD3-ControlNet"}
    grid = main_grid(table)
    for line in grid.lines:
        marked = [item.place for item in line.items]
        assert any(marked) == (line.items[0].text == "dit4sr"), line
        assert line.items[1].text == line.kind
    # As printed in the paper, whatever the digits of ours.
    texts = {line.items[0].text: [i.text for i in line.items] for line in grid.lines}
    assert "23.378" in texts["DiT4SR"] and "68.073" in texts["DiT4SR"]


def test_reported_numbers_stand_only_below_their_own_protocol(here: Path) -> None:
    for protocol in ("rgb", "ycbcr"):
        write_run(here / protocol, "dit4sr", {"psnr": 20.0}, protocol=protocol, facts=checkpoint())
    (rgb,) = merged("rgb")
    assert rgb.quoted == []
    (both,) = merged("rgb", "ycbcr")
    quoted = {m.protocol for q in both.quoted for m in q.values}
    assert quoted == {"ycbcr"}


@pytest.mark.parametrize("changes", [{"benchmark": "demo"}, {"benchmark": "div2k_val"}])
def test_nothing_is_reported_where_the_paper_has_nothing(here: Path, changes: dict[str, str]) -> None:
    write_run(here / "a", "dit4sr", OURS, facts=checkpoint(), **changes)  # type: ignore[arg-type]
    assert merged("a")[0].quoted == []


def test_published_files_name_their_source() -> None:
    assert SOURCES["fidelity"].endswith("supplement, table 1") and SOURCES["complexity"].endswith("supplement, table 2")
    for table in SOURCES:
        assert read_published(table)
    numbers = {(r.method, r.stated): r.text for r in reported("drealsr", 4.0)}
    assert numbers["SeeSR", METRICS["psnr"]] == "28.074" and numbers["DiT4SR", METRICS["musiq"]] == "64.950"
    assert reported("drealsr", 2.0) == []
    assert len({r.method for r in reported("realsr", 4.0)}) == 11
    assert {len([r for r in reported(name, 4.0)]) for name in ("drealsr", "realsr")} == {11 * 7}
    assert reported_seconds("realsr")["DiT4SR"] == "5.61" and reported_seconds("reallq250") == {}
    for name in BENCHMARKS:
        assert all(float(r.text) > 0 for r in reported(name, 4.0))


# What may not be mixed


def test_protocols_have_columns_of_their_own(here: Path) -> None:
    write_run(here / "a", "x", {"psnr": 20.0}, protocol="rgb")
    write_run(here / "b", "y", {"psnr": 22.0}, protocol="ycbcr")
    (table,) = merged("a", "b")
    header = main_grid(table).header
    assert sum(h.startswith("PSNR") for h in header) == 2
    assert any("rgb" in h for h in header) and any("ycbcr" in h for h in header)
    shown = {(e.label, m.protocol) for e in table.entries for m in e.cells}
    assert shown == {("x", "rgb"), ("bicubic", "rgb"), ("y", "ycbcr"), ("bicubic", "ycbcr")}
    # x and y have no column in common, so neither is compared with the other.
    assert not entry(table, "y").compared


def test_versions_and_variants_have_columns_of_their_own(here: Path) -> None:
    for name, old, new in (("a", "", ""), ("b", "0.1.16", "0.1.13"), ("c", "KonIQ-10k", "SPAQ")):
        write_run(here / name, name, {"musiq": 60.0})
        path = here / name / "per_image.csv"
        path.write_text(path.read_text().replace(old, new) if old else path.read_text())
    (table,) = merged("a", "b", "c")
    assert len(table.measures) == 3
    assert sorted(len(e.cells) for e in table.entries) == [1, 1, 1, 3]


def test_benchmarks_have_tables_of_their_own(here: Path) -> None:
    write_run(here / "a", "x", OURS, benchmark="realsr")
    write_run(here / "b", "x", OURS, benchmark="drealsr")
    write_run(here / "c", "x", OURS, benchmark="folder")
    write_run(here / "d", "x", OURS, benchmark="folder")
    text = json.loads((here / "d" / "summary.json").read_text())
    text["benchmark"]["lq"] = "elsewhere"
    (here / "d" / "summary.json").write_text(json.dumps(text))
    assert [t.name for t in merged("a", "b", "c", "d")] == ["realsr", "drealsr", "folder (LR)", "folder (elsewhere)"]


def test_benchmarks_of_one_name_with_other_images_are_refused(here: Path) -> None:
    write_run(here / "a", "x", OURS)
    write_run(here / "b", "y", OURS, bicubic={"psnr": 27.1})
    with pytest.raises(UserError, match="bicubic has psnr .* their images differ"):
        merged("a", "b")


def test_means_are_over_the_common_images(here: Path) -> None:
    write_run(here / "a", "x", OURS)
    write_run(here / "b", "y", OURS, phase=1.0, images=IMAGES[3:9])
    (table,) = merged("a", "b")
    wanted = np.mean([wave("psnr", OURS["psnr"], i, 0.0) for i in range(4, 10)])
    assert values(table, "psnr")["x"] == pytest.approx(wanted)
    assert {c.n for e in table.entries for c in e.cells.values()} == {6}
    assert any("over the 6 images" in note and "x has 12" in note for note in table.notes)


def test_runs_without_a_common_image_are_refused(here: Path) -> None:
    write_run(here / "a", "x", OURS, images=IMAGES[:4])
    write_run(here / "b", "y", OURS, images=IMAGES[4:])
    with pytest.raises(UserError, match="no image with a value of psnr in common"):
        merged("a", "b")


def test_undefined_values_are_left_out_for_all(here: Path) -> None:
    def sometimes(metric: str, mean: float, image: int, phase: float) -> float:
        return math.nan if image == 2 and phase else wave(metric, mean, image, phase)

    write_run(here / "a", "x", {"psnr": 20.0}, phase=1.0, value=sometimes)
    write_run(here / "b", "y", {"psnr": 21.0})
    (table,) = merged("a", "b")
    assert {c.n for e in table.entries for c in e.cells.values()} == {11}


# Rows


def test_runs_that_differ_in_their_seed_are_one_row(here: Path) -> None:
    for seed in range(3):
        write_run(here / f"s{seed}", "dit4sr", OURS, phase=float(seed), facts=checkpoint(seed))
    (table,) = merged("s0", "s1", "s2")
    assert [e.label for e in table.entries] == ["dit4sr", "bicubic"]
    found = entry(table, "dit4sr")
    assert found.seeds == 3 and entry(table, "bicubic").seeds is None
    assert all(c.spread.over == "seeds" and c.spread.count == 3 for c in found.cells.values())


def test_other_settings_are_other_rows(here: Path) -> None:
    write_run(here / "a", "dit4sr", OURS, facts=checkpoint(step=1000))
    write_run(here / "b", "dit4sr", OURS, facts=checkpoint(1, step=2000), phase=1.0)
    (table,) = merged("a", "b")
    assert [e.label for e in table.entries] == ["dit4sr (step 1000)", "dit4sr (step 2000)", "bicubic"]
    # The same seed and settings: two evaluations of something that the summary does not tell apart.
    write_run(here / "c", "dit4sr", OURS, facts=checkpoint(step=1000))
    (table,) = merged("a", "c")
    assert [e.label for e in table.entries] == ["dit4sr (a)", "dit4sr (c)", "bicubic"]


def test_labels(here: Path) -> None:
    write_run(here / "a=1", "dit4sr", OURS, facts=checkpoint())
    write_run(here / "b", "dit4sr", OURS, facts=checkpoint(1), phase=1.0)
    assert [e.label for e in merged("Ours=a=1", "b")[0].entries] == ["Ours", "dit4sr", "bicubic"]
    assert [e.label for e in merged("a=1")[0].entries] == ["dit4sr", "bicubic"]
    both = merge(find_runs({"Ours": ["a=1", "b"]}), QUICK)[0]
    assert [(e.label, e.seeds) for e in both.entries] == [("Ours", 2), ("bicubic", None)]
    with pytest.raises(UserError, match="cannot be labelled bicubic"):
        merged("bicubic=b")


def test_controls_are_not_ranked(here: Path) -> None:
    write_run(here / "a", "dit4sr", OURS, facts=checkpoint())
    path = here / "a" / "per_image.csv"
    lines = path.read_text().splitlines()
    better = [line.replace(",dit4sr,", ",dit4sr (shuffled LR),").replace(",23.", ",93.") for line in lines[1:]]
    path.write_text("\n".join([*lines, *(line for line in better if "shuffled" in line)]) + "\n")
    (table,) = merged("Ours=a")
    assert [e.label for e in table.entries] == ["Ours", "Ours (shuffled LR)", "bicubic"]
    assert entry(table, "Ours (shuffled LR)").places == {}
    assert entry(table, "Ours (shuffled LR)").seconds is None and entry(table, "Ours").seconds == 5.25


def test_deviation_over_samples_is_the_summary_s(here: Path) -> None:
    over = {"psnr": {"over": "samples", "means": [23.5, 23.7], "mean": 23.6, "std": 0.1414, "n": 2}}
    metrics = {"psnr": {"protocol": "ycbcr", "border": 0}}
    write_run(here / "a", "dit4sr", OURS, facts=checkpoint(), variation={"dit4sr": over}, metrics=metrics)
    (table,) = merged("a")
    spreads = {m.metric: c.spread for m, c in entry(table, "dit4sr").cells.items()}
    assert (spreads["psnr"].std, spreads["psnr"].over, spreads["psnr"].count) == (0.1414, "samples", 2)
    assert spreads["ssim"] is None


def test_seconds_of_reading_images_are_not_shown(here: Path) -> None:
    write_run(here / "a", "folder_of_images", OURS, facts={"path": "x"})
    write_run(here / "b", "dit4sr", OURS, phase=1.0, facts=checkpoint(), settings={"metrics_only": True})
    (table,) = merged("a", "b")
    assert "s/image" not in main_grid(table).header


def test_fid_has_its_number_of_images(here: Path) -> None:
    fid = {"metric": "fid", "method": "dit4sr", "value": 41.5, "n": 12, "warning": "FID over few images"}
    write_run(here / "a", "dit4sr", OURS, facts=checkpoint(), of_sets=[fid])
    (table,) = merged("a")
    assert values(table, "fid") == {"dit4sr": 41.5}
    text = markdown(sections([table], QUICK))
    assert "41.50" in text and "FID over few images (n = 12)" in text


# Statistics


def test_bootstrap_is_scipy_s() -> None:
    from scipy import stats

    skewed = np.random.default_rng(0).gamma(1.5, size=(40, 2)) * [1.0, 30.0]
    ours = bootstrap(skewed, confidence=0.9, resamples=10_000, seed=1)
    for column, found in zip(skewed.T, ours, strict=True):
        wanted = stats.bootstrap(
            (column,), np.mean, confidence_level=0.9, n_resamples=10_000, rng=1
        ).confidence_interval
        # Within the noise of drawing.
        assert (found.low, found.high) == pytest.approx((wanted.low, wanted.high), abs=0.02 * column.std())
    assert ours == bootstrap(skewed, confidence=0.9, resamples=10_000, seed=1)
    assert ours != bootstrap(skewed, confidence=0.9, resamples=10_000, seed=2)


def test_bootstrap_covers() -> None:
    """Of 95% intervals of normal samples about 95% hold the mean."""
    rng = np.random.default_rng(3)
    intervals = bootstrap(rng.normal(size=(60, 400)), confidence=0.95, resamples=1000, seed=0)
    covered = np.mean([i.low <= 0 <= i.high for i in intervals])
    assert 0.91 <= covered <= 0.98


def test_bootstrap_at_its_limits() -> None:
    (constant,) = bootstrap(np.full((5, 1), 3.25), confidence=0.95, resamples=100, seed=0)
    assert (constant.low, constant.high) == (3.25, 3.25)
    (one,) = bootstrap(np.array([[1.0]]), confidence=0.95, resamples=100, seed=0)
    assert math.isnan(one.low)


@pytest.mark.parametrize("n", [8, 13, 30])
def test_paired_test_is_scipy_s(n: int) -> None:
    from scipy import stats

    rng = np.random.default_rng(n)
    differences = rng.normal(size=(n, 3)) + [0.0, 0.5, 3.0]
    ours = paired_p(differences, resamples=20_000, seed=0)
    for column, p in zip(differences.T, ours, strict=True):
        test = stats.permutation_test(
            (column, np.zeros(n)),
            lambda x, y, axis: np.mean(x - y, axis=axis),
            permutation_type="samples",
            n_resamples=20_000 if n > 13 else np.inf,
            vectorized=True,
            rng=0,
        )
        assert p == pytest.approx(test.pvalue, abs=0.012 if n > 13 else 1e-12)


def test_paired_test_at_its_limits() -> None:
    assert paired_p(np.zeros((6, 1)), resamples=100, seed=0) == [1.0]
    assert paired_p(np.ones((3, 1)), resamples=100, seed=0) == [0.25]
    assert paired_p(np.ones((50, 1)), resamples=999, seed=0) == [0.001]
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])


def test_differences_are_paired(here: Path) -> None:
    """A difference far smaller than the images' own spread is found, for it is the same on every image."""
    write_run(here / "a", "x", {"psnr": 20.0})
    write_run(here / "b", "y", {"psnr": 20.05})
    (table,) = merged("a", "b", options=Options(resamples=500, against="x"))
    (found,) = entry(table, "y").compared.values()
    assert found.difference == pytest.approx(0.05)
    assert (found.interval.low, found.interval.high) == pytest.approx((0.05, 0.05))
    # 2 / 2^12, two comparisons in the column.
    assert found.p == pytest.approx(2 / 4096) and found.adjusted == pytest.approx(4 / 4096)
    assert entry(table, "x").compared == {}


# Files and settings


def test_figures(here: Path) -> None:
    write_runs(here / "runs")
    tables = merge(find_runs(GIVEN), QUICK)
    for made in (perception_distortion(tables[0]), bars(tables[0]), bars(tables[1])):
        assert not isinstance(made, str)
        assert made[1]["png"].startswith(b"\x89PNG") and made[1]["pdf"].startswith(b"%PDF")
    why = perception_distortion(tables[1])
    assert isinstance(why, str) and "no PSNR" in why


def config(**changes: Any) -> dict[str, Any]:
    options = {"against": None, "confidence": 0.95, "resamples": 200}
    return {"seed": 0, "report_options": options, "out": "out", "paths": {"outputs": "outputs"}, **changes}


def test_names_are_shown_as_they_are(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_run(here / "a", "50%_of|<b>x</b>&$1", BASELINE, facts=checkpoint())
    assert report(config(report="a"), {"out"}) == 0
    assert "50%\\_of\\|\\<b>x\\</b>&$1" in capsys.readouterr().out
    assert "50\\%\\_of|$<$b$>$x$<$/b$>$\\&\\$1" in (here / "out" / "table.tex").read_text()
    html = (here / "out" / "report.html").read_text()
    assert "50%_of|&lt;b&gt;x&lt;/b&gt;&amp;$1" in html and "<b>" not in html
    assert html.count("data:image/png;base64,") == 2
    assert not [p for p in (here / "out").iterdir() if p.name.startswith(".")]


def refused(what: str, given: Any, **changes: Any) -> None:
    with pytest.raises(UserError, match=what) as caught:
        report(config(report=given, **changes), {"out"})
    assert "\n" not in str(caught.value)


def test_what_is_no_evaluation_is_refused(here: Path) -> None:
    write_run(here / "runs" / "a", "x", OURS)
    write_run(here / "b", "y", OURS)
    (here / "empty").mkdir()
    refused("no such folder", "missing")
    refused("no summary.json|no per_image.csv", ["empty"])
    refused("is a folder of evaluations: give report='runs/\\*'", "runs")
    refused("no finished evaluation matches", "empty/*")
    refused("no evaluation there", [])
    refused("holds an evaluation", "runs/a", out="b")
    refused("no such row; choose one of x, bicubic", "runs/a", report_options={"against": "z"})
    refused("confidence=2", "runs/a", report_options={"confidence": 2})
    refused("resamples=0", "runs/a", report_options={"resamples": 0})
    (here / "b" / "summary.json").write_text("[1]")
    refused("holds no readable evaluation", "b")
    shutil.rmtree(here / "b")
    write_run(here / "b", "y", OURS)
    text = (here / "b" / "per_image.csv").read_text()
    (here / "b" / "per_image.csv").write_text(text[: len(text) // 2])
    refused("holds no readable evaluation", "b")
    assert not (here / "out").exists()


def test_the_verb_answers_soon_and_without_torch(here: Path) -> None:
    write_runs(here / "runs")
    started = time.monotonic()
    command = [sys.executable, "-X", "importtime", str(REPOSITORY / "evaluate.py"), "report=[runs/ours_0,runs/ours_1]"]
    done = subprocess.run(
        [*command, "out=out", "report_options.resamples=1000"], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert not re.search(r"\| +(torch|pyiqa|lightning|diffusers)$", done.stderr, re.MULTILINE)
    assert "| dit4sr " in done.stdout and "out/report.html" in done.stdout
    assert {p.name for p in (here / "out").iterdir()} >= {"table.md", "table.tex", "table.csv", "report.html"}
    assert time.monotonic() - started < 60
    missing = subprocess.run([*command[:1], command[3], "report=nowhere"], capture_output=True, text=True, timeout=60)
    assert missing.returncode == 2 and len(missing.stderr.strip().splitlines()) == 1


@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="there is no LaTeX here")
def test_the_latex_tables_compile_and_fit_the_text(tmp_path: Path) -> None:
    shutil.copy(GOLDEN / "table.tex", tmp_path)
    (tmp_path / "main.tex").write_text(
        "\\documentclass{article}\n\\usepackage{booktabs,graphicx}\n\\begin{document}\n\\input{table}\n\\end{document}\n"
    )
    command = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "main.tex"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout[-2000:]
    assert "Overfull" not in done.stdout and (tmp_path / "main.pdf").stat().st_size > 10_000

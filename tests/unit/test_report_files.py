"""The verb's report: what it reads, refuses, draws and writes."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from report_folders import BASELINE, GIVEN, OURS, QUICK, checkpoint, write_run, write_runs

from dit4sr.errors import UserError
from dit4sr.evaluation.reports.figures import bars, perception_distortion
from dit4sr.evaluation.reports.merging import merge
from dit4sr.evaluation.reports.run import report
from dit4sr.evaluation.reports.runs import find_runs

REPOSITORY = Path(__file__).parents[2]


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
    assert "50\\%\\_of\\textbar{}$<$b$>$x$<$/b$>$\\&\\$1" in (here / "out" / "table.tex").read_text()
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
        [*command, "out=out", "report_options.resamples=1000"], capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert not re.search(r"\| +(torch|pyiqa|lightning|diffusers)$", done.stderr, re.MULTILINE)
    assert "| dit4sr " in done.stdout and "out/report.html" in done.stdout
    assert {p.name for p in (here / "out").iterdir()} >= {"table.md", "table.tex", "table.csv", "report.html"}
    assert time.monotonic() - started < 60
    missing = subprocess.run([*command[:1], command[3], "report=nowhere"], capture_output=True, text=True, timeout=600)
    assert missing.returncode == 2 and len(missing.stderr.strip().splitlines()) == 1

"""``python evaluate.py report=…``: from folders of evaluations to tables, a page and figures."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

from dit4sr.errors import UserError
from dit4sr.evaluation.reports.figures import bars, perception_distortion
from dit4sr.evaluation.reports.formats import csv_text, latex, markdown
from dit4sr.evaluation.reports.layout import sections, title_of_table
from dit4sr.evaluation.reports.merging import Options, merge
from dit4sr.evaluation.reports.page import page
from dit4sr.evaluation.reports.runs import SUMMARY, find_runs
from dit4sr.files import write_atomically

LEAST_RESAMPLES = 100
MOST_RESAMPLES = 1_000_000


def report(config: Mapping[str, Any], explicit: Collection[str]) -> int:
    """Merge evaluations and write table.md, .tex and .csv, report.html and figures.

    Args:
        config: configs/evaluate.yaml, composed: ``report``, ``report_options``, ``seed`` and ``out``.
        explicit: names of the settings that the command line set.

    Returns:
        0.

    Raises:
        UserError: for runs that are not there, not finished, or contradict each other.
    """
    options = read_options(config)
    runs = find_runs(config["report"])
    tables = merge(runs, options)
    found = sections(tables, options)
    out = Path(config["out"]) if "out" in explicit else default_out(config)
    if (out / SUMMARY).exists():
        raise UserError(f"out={out} holds an evaluation: give another folder for the report")
    said = []
    pictures: dict[str, list[tuple[str, bytes]]] = {}
    written = []
    used: set[str] = set()
    for table in tables:
        stem = _stem(table.name, used)
        for kind, made in (("perception_distortion", perception_distortion(table)), ("bars", bars(table))):
            if isinstance(made, str):
                said.append(made)
                continue
            title, files = made
            pictures.setdefault(title_of_table(table), []).append((title, files["png"]))
            for suffix, data in files.items():
                _write(out / f"{kind}_{stem}.{suffix}", data)
            written.append(out / f"{kind}_{stem}.png")
    lead = f"{len(runs)} evaluations, {len(tables)} benchmark{'s' if len(tables) > 1 else ''}"
    text = markdown(found)
    for name, content in (
        ("table.md", text),
        ("table.tex", latex(found)),
        ("table.csv", csv_text(tables, options)),
        ("report.html", page(found, pictures, lead)),
        ("report.json", json.dumps(_facts(runs, options), indent=1, ensure_ascii=False) + "\n"),
    ):
        _write(out / name, content.encode("utf-8"))
    print(text)
    for line in said:
        print(line)
    for name in ("table.md", "table.tex", "table.csv", "report.html"):
        print(out / name)
    for path in written:
        print(path)
    return 0


def read_options(config: Mapping[str, Any]) -> Options:
    """``report_options`` and the seed.

    Raises:
        UserError: for one out of range.
    """
    given = config.get("report_options") or {}
    confidence, resamples, seed = given.get("confidence", 0.95), given.get("resamples", 10_000), config["seed"]
    if isinstance(confidence, bool) or not isinstance(confidence, int | float) or not 0 < confidence < 1:
        raise UserError(f"report_options.confidence={confidence}: give a number between 0 and 1, such as 0.95")
    whole = isinstance(resamples, int) and not isinstance(resamples, bool)
    if not whole or not LEAST_RESAMPLES <= resamples <= MOST_RESAMPLES:
        raise UserError(f"report_options.resamples={resamples}: give {LEAST_RESAMPLES} to {MOST_RESAMPLES}")
    if not isinstance(seed, int) or isinstance(seed, bool) or seed < 0:
        raise UserError(f"seed={seed}: give a whole number, 0 or more")
    against = given.get("against")
    return Options(None if against is None else str(against), float(confidence), resamples, seed)


def default_out(config: Mapping[str, Any]) -> Path:
    """A dated folder under paths.outputs."""
    now = datetime.now()
    return Path(config["paths"]["outputs"]) / "report" / f"{now:%Y-%m-%d}" / f"{now:%H-%M-%S}"


def _stem(name: str, used: set[str]) -> str:
    stem = "".join(c if c.isalnum() or c in "-_" else "_" for c in name)[-60:].strip("_") or "benchmark"
    stem = stem if stem not in used else f"{stem}_{len(used)}"
    used.add(stem)
    return stem


def _facts(runs: list[Any], options: Options) -> dict[str, Any]:
    from dit4sr.provenance import git_revision

    folders = [{"folder": str(run.folder), "label": run.label, "revision": run.summary.get("revision")} for run in runs]
    return {"runs": folders, "options": vars(options), "revision": git_revision()}


def _write(path: Path, data: bytes) -> None:
    with write_atomically(path) as temporary:
        temporary.write_bytes(data)

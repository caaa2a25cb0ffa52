"""Finding and reading the folders that evaluations left behind."""

from __future__ import annotations

import csv
import glob
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dit4sr.errors import UserError
from dit4sr.evaluation.tables import Row, read_rows

SUMMARY, ROWS = "summary.json", "per_image.csv"
HOW = "give report='[outputs/a,outputs/b]' or a pattern, report='outputs/evaluate/*/*'"


@dataclass(frozen=True)
class Run:
    """A folder that an evaluation wrote.

    Attributes:
        folder: of it.
        label: for the method, where the user gave one.
        benchmark, upscale, lq: of the benchmark: name, factor, folder.
        method: name of the method in the rows.
        facts: the summary's words about the method.
        rows: of per_image.csv.
        summary: all of summary.json.
    """

    folder: Path
    label: str | None
    benchmark: str
    upscale: float
    lq: str
    method: str
    facts: Mapping[str, Any]
    rows: tuple[Row, ...]
    summary: Mapping[str, Any]

    @property
    def images(self) -> frozenset[str]:
        """Names of the images that have a value."""
        return frozenset(row.image for row in self.rows if math.isfinite(row.value))

    @property
    def timed(self) -> bool:
        """Whether its seconds and memory are of restoring, not of reading images that were there already."""
        read = "images" in self.facts or set(self.facts) <= {"name", "path", "names"}
        return not read and not self.summary.get("settings", {}).get("metrics_only", False)


def find_runs(report: Any) -> list[Run]:
    """The runs that the setting ``report`` names.

    Args:
        report: a folder or a pattern, a list of them, each also as ``label=folder``, or a mapping label → those.

    Raises:
        UserError: it names nothing, or something that is no finished evaluation.
    """
    given: list[tuple[str | None, str]] = []
    if isinstance(report, Mapping):
        for label, value in report.items():
            given += [(str(label), str(v)) for v in (value if isinstance(value, list) else [value])]
    else:
        for value in report if isinstance(report, list) else [report]:
            label, equals, path = str(value).partition("=")
            # A folder may have an equals sign in its name.
            whole = not equals or bool(glob.glob(str(Path(str(value)).expanduser()), recursive=True))
            given.append((None, str(value)) if whole else (label, path))
    found: dict[Path, Run] = {}
    for name, text in given:
        for folder in _folders(text):
            if folder.resolve() not in found or name is not None:
                found[folder.resolve()] = read_run(folder, name)
    if not found:
        raise UserError(f"report={report}: no evaluation there; {HOW}")
    return list(found.values())


def read_run(folder: Path, label: str | None = None) -> Run:
    """Read one folder.

    Raises:
        UserError: it holds no finished evaluation.
    """
    try:
        summary = json.loads((folder / SUMMARY).read_text(encoding="utf-8"))
        rows = tuple(read_rows(folder / ROWS))
        benchmark, method = summary["benchmark"], dict(summary["method"])
        run = Run(
            folder=folder,
            label=label,
            benchmark=str(benchmark["name"]),
            upscale=float(benchmark["upscale"]),
            lq=str(benchmark["lq"]),
            method=str(method["name"]),
            facts=method,
            rows=rows,
            summary=summary,
        )
    except FileNotFoundError as error:
        raise UserError(
            f"report: {folder} has no {Path(error.filename).name}: it is no finished evaluation; give a folder that "
            "evaluate.py wrote (its out=), or run it again"
        ) from error
    except (OSError, ValueError, KeyError, TypeError, AttributeError, csv.Error) as error:
        said = f"{type(error).__name__}: {' '.join(str(error).split())}"
        raise UserError(f"report: {folder} holds no readable evaluation ({said}): evaluate it again") from error
    if not run.images:
        raise UserError(f"report: {folder / ROWS} has no values: evaluate it again")
    return run


def _folders(text: str) -> list[Path]:
    path = Path(text).expanduser()
    if path.is_dir():
        if not (path / SUMMARY).is_file() and any(path.glob(f"*/{SUMMARY}")):
            raise UserError(f"report={text} is a folder of evaluations: give report='{text.rstrip('/')}/*'")
        return [path]
    if not glob.has_magic(text):
        raise UserError(f"report={text}: there is no such folder; {HOW}")
    found = [Path(p) for p in sorted(glob.glob(str(path), recursive=True)) if Path(p).is_dir()]
    # A pattern also matches folders of other things, and evaluations under way.
    finished = [p for p in found if (p / SUMMARY).is_file() and (p / ROWS).is_file()]
    if not finished:
        raise UserError(f"report={text}: no finished evaluation matches; {HOW}")
    return finished

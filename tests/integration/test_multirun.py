"""Multiruns of the verbs: a folder for each job, and an exit status that is the jobs' own."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from tiny_checkpoint import TINY, write_pairs

from dit4sr.cli import main
from dit4sr.evaluation.tables import read_rows
from dit4sr.launching import NOTES, JobNotes, Note, notes, quoted, report, status_of


def run(monkeypatch: pytest.MonkeyPatch, verb: str, *overrides: str) -> int:
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")
    monkeypatch.setattr(sys, "argv", [f"{verb}.py", "-m", *overrides])
    return main(verb)


def test_each_job_evaluates_into_its_own_folder_and_a_failed_one_is_listed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_pairs(tmp_path, ["ant", "bee"])
    given = [f"benchmark.lq={tmp_path / 'lq'}", f"benchmark.hq={tmp_path / 'hq'}", "benchmark=folder", "method=bicubic"]
    out = tmp_path / "it's out"
    given += [f"out={quoted(str(out))}", "pictures=1", "metrics.names=[psnr]", "device=cpu"]
    assert run(monkeypatch, "evaluate", *given, "metrics.protocol=ycbcr,rgb", "benchmark.count=2,99") == 1
    protocols = [{row.protocol for row in read_rows(out / job / "per_image.csv")} for job in ("0", "2")]
    assert protocols == [{"ycbcr"}, {"rgb"}]
    listed = [line for line in capsys.readouterr().err.splitlines() if line.startswith("not done: ")]
    assert [line.split(": ")[1] for line in listed] == [
        "metrics.protocol=ycbcr benchmark.count=99",
        "metrics.protocol=rgb benchmark.count=99",
    ]
    assert "has 99 images, but" in listed[0]
    # Nothing is left of it when the same folder is used again, and jobs that all fail are an error of the input.
    assert run(monkeypatch, "evaluate", *given, "benchmark.count=98,99") == 2
    assert run(monkeypatch, "evaluate", *given, "benchmark.count=2,null") == 0
    assert "not done" not in capsys.readouterr().err.split("has 99 images")[-1]


def test_the_jobs_of_a_sweep_share_one_folder_whatever_its_name_holds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = [*TINY, f"paths.outputs={tmp_path}", f"paths.data={tmp_path / 'data'}", "plan=true"]
    assert run(monkeypatch, "train", *given, "model=dit4sr,variant_a") == 0
    (sweep,) = (tmp_path / "train").glob("*/*")
    assert sorted(path.name for path in sweep.iterdir() if not path.name.startswith(".")) == [
        "0_dit4sr",
        "1_variant_a",
        "multirun.yaml",
    ]
    assert [note.status for note in notes(sweep)] == [0, 0]


def test_two_jobs_of_one_folder_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    given = [*TINY, f"paths.outputs={tmp_path}", f"paths.data={tmp_path / 'data'}", "plan=true", "experiment=ablation"]
    assert run(monkeypatch, "train", *given, "model=dit4sr,variant_a", "training.steps=1,2") == 1
    listed = [line for line in capsys.readouterr().err.splitlines() if line.startswith("not done: ")]
    assert [line.split(": ")[1] for line in listed] == [
        "model=dit4sr training.steps=2",
        "model=variant_a training.steps=2",
    ]
    assert all("one out= each" in line for line in listed)


def test_a_job_that_was_killed_is_not_taken_for_a_finished_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / NOTES).mkdir()
    facts = {"message": "", "folder": "", "overrides": ["source=x", "part=0/2"]}
    (tmp_path / NOTES / "0.json").write_text(json.dumps({"number": 0, "status": 0, **facts}))
    began = {"number": 1, "status": -1, **facts, "overrides": ["source=x", "part=1/2"]}
    (tmp_path / NOTES / "1.json").write_text(json.dumps(began))
    monkeypatch.setattr(JobNotes, "sweep", tmp_path)
    assert report() == 1
    assert capsys.readouterr().err == "not done: part=1/2: ended before it was done\n"


def test_the_status_of_a_multirun() -> None:
    def of(*statuses: int) -> int:
        return status_of([Note(number, (), status=status) for number, status in enumerate(statuses)])

    assert [of(), of(0, 0), of(0, 1), of(0, 2), of(2, 2), of(-1, 0)] == [0, 0, 1, 1, 2, 1]


@pytest.mark.parametrize("text", ["/a/b", "/it's", r"/a\'b", "/a b,c=[d]", r"C:\new"])
def test_any_folder_can_be_an_override(text: str) -> None:
    (override,) = OverridesParser.create().parse_overrides([f"x={quoted(text)}"])
    assert override.value() == text

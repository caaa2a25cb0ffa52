"""The studies' command lines: settings, lists, help, and mistakes in one line."""

import resource
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from dit4sr.studies.command import Request, run_study, setting

ROOT = Path(__file__).resolve().parents[2]
STUDIES = (
    "architecture",
    "complexity",
    "controlnet_comparison",
    "fidelity",
    "prompt_source",
    "qualitative",
    "user_study",
)


@dataclass
class Settings:
    names: list[str] = setting("some names", ["a"])
    number: int = setting("a number", 3)
    path: str | None = setting("a path", None)
    out: str | None = setting("folder", None)


def ask(arguments: list[str], verb: str | None = None) -> tuple[int, list[Request]]:
    seen: list[Request] = []

    def study(request: Request) -> int:
        seen.append(request)
        return 0

    return run_study("example", "An example.", Settings, study, arguments, verb=verb), seen


def test_settings_are_read(tmp_path: Path) -> None:
    status, (request,) = ask(["names=[b,c]", "number=7", "path=a/b=c.txt", f"out={tmp_path}/x"])
    assert status == 0
    assert (request.settings.names, request.settings.number, request.settings.path) == (["b", "c"], 7, "a/b=c.txt")
    assert request.out == tmp_path / "x" and request.out.is_dir()


def test_lists_need_no_brackets(tmp_path: Path) -> None:
    assert ask(["names=b,c", f"out={tmp_path}"])[1][0].settings.names == ["b", "c"]
    assert ask(["names=one=x/y", f"out={tmp_path}"])[1][0].settings.names == ["one=x/y"]
    assert ask(["names=[]", f"out={tmp_path}"])[1][0].settings.names == []


def test_defaults_and_the_folder_of_outputs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DIT4SR_OUTPUTS", str(tmp_path / "outputs"))
    _, (request,) = ask([])
    assert request.settings.names == ["a"] and request.out == tmp_path / "outputs" / "example"


@pytest.mark.parametrize(
    ("argument", "said"),
    [
        ("numbr=3", "did you mean number?"),
        ("number=many", "number=many"),
        ("plain", "setting=value"),
        ("names=[b", "names=[b"),
    ],
)
def test_mistakes_are_one_line(argument: str, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status, seen = ask([argument, f"out={tmp_path}"])
    error = capsys.readouterr().err
    assert status == 2 and not seen
    assert said in error and error.count("\n") == 1 and error.startswith("error: ")


def test_out_that_is_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").touch()
    assert ask([f"out={tmp_path}/file"])[0] == 2
    assert "give another out=" in capsys.readouterr().err


def test_settings_of_the_verb(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status, (request,) = ask(["number=1", "sampler.steps=5", "benchmark=folder", f"out={tmp_path}"], verb="evaluate")
    assert status == 0
    assert request.config["sampler"]["steps"] == 5 and request.config["benchmark"]["name"] == "folder"
    assert request.explicit == {"sampler.steps", "benchmark"}
    for wrong in ("benchmark=relsr", "nothing=1", "sampler.steps=[1"):
        assert ask([wrong, f"out={tmp_path}"], verb="evaluate")[0] == 2
        error = capsys.readouterr().err
        assert error.count("\n") == 1 and wrong.split("=")[0].split(".")[0] in error


def seconds_of_children() -> float:
    """Processor time of the processes that this one has started and waited for."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


@pytest.mark.parametrize("study", STUDIES)
def test_help_answers_at_once(study: str) -> None:
    before = seconds_of_children()
    command = [sys.executable, str(ROOT / "experiments" / study / "run.py"), "--help"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    # The processor's time of the whole process, an interpreter's start included: 0.1 s. By the clock on the wall a
    # process may wait longer for a busy machine than it computes.
    assert seconds_of_children() - before < 2
    assert done.returncode == 0 and f"experiments/{study}/run.py" in done.stdout and "out " in done.stdout
    heavy = f"import sys; sys.argv = ['run.py', '--help']; from dit4sr.studies.{study} import main; main(); " + (
        "assert not {'torch', 'hydra', 'matplotlib', 'diffusers'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", heavy], check=True, capture_output=True, timeout=600)

"""What is wrong with a config is said at once, before torch and its friends are imported; an empty out= is refused."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image
from tiny_checkpoint import compose_verb

from dit4sr.cli import check_folders, refuse_empty_out
from dit4sr.errors import UserError
from dit4sr.evaluation.run import run as evaluate

ROOT = Path(__file__).parents[2]

HEAVY = {"torch", "diffusers", "transformers", "lightning", "pyiqa", "wandb", "pandas", "matplotlib", "gradio"}

CODE = f"""
import sys
from dit4sr.cli import main
status = main(sys.argv.pop(1))
print(status, sorted({HEAVY!r} & set(sys.modules)))
"""

ERRORS = [
    ("evaluate", "ckpt=nowhere", "no checkpoint at nowhere"),
    ("evaluate", "weights=nowhere", "weights=nowhere is no folder"),
    ("evaluate", "seed=0", "no checkpoint of model=dit4sr under"),
    ("evaluate", "sampler.steps=0", "sampler.steps=0"),
    ("evaluate", "device=null", "device=None: choose auto"),
    ("evaluate", "method=folder", "method=folder needs method.path="),
    ("evaluate", "method=folder method.path=nowhere", "method.path=nowhere is no folder"),
    ("evaluate", "method=spandrel method.path=nowhere", "method.path=nowhere: give a checkpoint file"),
    ("evaluate", "method=bicubic benchmark=realsr paths.benchmarks=nowhere", "benchmark realsr: there is no folder"),
    ("evaluate", "metrics_only=true", "metrics_only=true measures the images"),
    ("prepare", "patch=0", "patch=0 must be a whole number"),
    ("prepare", "source=nowhere", "nowhere is not a folder or file"),
    ("export", "ckpt=nowhere", "no checkpoint at nowhere"),
    ("export", "seed=0", "no checkpoint of model=dit4sr under"),
    ("export", "sampler.steps=0", "sampler.steps=0"),
    ("train", "out=null", "out=null names no folder"),
]


def run(folder: Path, verb: str, *overrides: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "DIT4SR_OUTPUTS": str(folder / "outputs")}
    command = [sys.executable, "-c", CODE, verb, *overrides]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)


@pytest.mark.parametrize(("verb", "overrides", "words"), ERRORS)
def test_it_is_said_without_torch(tmp_path: Path, verb: str, overrides: str, words: str) -> None:
    given = [f"+{o}" if (verb, o) == ("export", "seed=0") else o for o in overrides.split()]
    done = run(tmp_path, verb, *given)
    assert done.stdout.strip() == "2 []", (done.stdout, done.stderr)
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: ") and words in line
    assert not list(tmp_path.iterdir())  # no folder of a run that has not been


@pytest.mark.parametrize("verb", ["evaluate", "restore", "export"])
def test_that_only_other_networks_are_there_is_said_without_torch(tmp_path: Path, verb: str) -> None:
    run_of = tmp_path / "outputs" / "a"
    (run_of / "checkpoints").mkdir(parents=True)
    (run_of / "checkpoints" / "last.ckpt").touch()
    (run_of / "config.yaml").write_text("model: {name: variant_b}\nbackbone: {name: nano}\n")
    Image.new("RGB", (16, 16)).save(tmp_path / "photo.png")
    given = ["input=photo.png", "output=restored"] if verb == "restore" else []
    for asked in ([], ["model=variant_b", "backbone=small"]):
        done = run(tmp_path, verb, *given, *asked)
        assert done.stdout.strip() == "2 []", (done.stdout, done.stderr)
        name = " ".join(asked or ["model=dit4sr"])
        assert f"error: no checkpoint of {name} under" in done.stderr
        assert "(there are model=variant_b backbone=nano)" in done.stderr


def test_the_demo_says_it_without_torch_or_gradio(tmp_path: Path) -> None:
    pytest.importorskip("gradio")
    for override, words in (("ckpt=nowhere", "no checkpoint at nowhere"), ("sampler.steps=0", "sampler.steps=0")):
        done = run(tmp_path, "demo", "port=7999", override)
        assert done.stdout.strip() == "2 []", (done.stdout, done.stderr)
        assert done.stderr.startswith("error: ") and words in done.stderr


def test_degradations_are_there_by_name_and_presets_need_no_torch() -> None:
    code = (
        "import sys; from dit4sr.data.degradations import DegradationPreset, load_preset; load_preset('dit4sr');"
        "print('torch' in sys.modules);"
        "from dit4sr.data import degradations; from dit4sr.data.degradations import *;"
        "print(degrade.__name__, degrade_batch.__name__, set(degradations.__all__) <= set(globals()),"
        "hasattr(degradations, 'nonsense'))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ["False", "degrade degrade_batch True False"]


@pytest.mark.parametrize("argument", ["out=", "out=''", '+out=""', "out= "])
def test_an_empty_out_is_refused(argument: str) -> None:
    with pytest.raises(UserError, match=r"^out= is empty: give a folder"):
        refuse_empty_out(["seed=1", argument])
    refuse_empty_out(["out=a", "output=", "out_of=", "--help"])


def test_an_out_that_no_folder_can_have_wherever_it_is_from() -> None:
    for verb in ("train", "evaluate", "restore", "export", "prepare", "demo", "preview"):
        check_folders(verb, compose_verb(verb))
        config = compose_verb(verb)
        config.out = ""
        with pytest.raises(UserError, match="^out= is empty"):
            check_folders(verb, config)
        with pytest.raises(UserError, match=r"^paths\.outputs= is empty"):
            check_folders(verb, compose_verb(verb, "paths.outputs=", "out=a"))
    check_folders("prepare", compose_verb("prepare", "out=null"))
    with pytest.raises(UserError, match="^out=null names no folder"):
        check_folders("train", compose_verb("train", "out=null"))


@pytest.mark.parametrize("given", [["out="], ["-m", "out=", "seed=0,1"]])
def test_train_writes_nothing_into_the_working_folder(tmp_path: Path, given: list[str]) -> None:
    done = run(tmp_path, "train", *given)
    assert (done.stdout, done.stderr[:20]) == ("2 []\n", "error: out= is empty")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "override", ["method.path=", "captioner.path=", "benchmark.lq=", "ckpt=", "weights=", "report="]
)
def test_an_empty_path_is_not_the_working_folder(tmp_path: Path, override: str) -> None:
    group = {"method.path=": "method=folder", "captioner.path=": "captioner=folder"}.get(override, "benchmark=folder")
    with pytest.raises(UserError, match=r"is empty|method=folder needs"):
        evaluate(compose_verb("evaluate", group, override, f"out={tmp_path}/out"), {"out"})

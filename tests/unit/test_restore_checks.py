"""What restore refuses at once, torch unimported, also where every result is there already."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from restoring import restore
from tiny_checkpoint import compose_verb, picture, save

from dit4sr.errors import UserError
from dit4sr.restoration.checks import check_network, check_paths
from dit4sr.restoration.colour import ALIGN
from dit4sr.restoration.run import run
from dit4sr.restoration.sampler_settings import COLOURS, SamplerSettings

REFUSED = [
    ("sampler.steps=0", "at least one step"),
    ("sampler.colour=sepia", "choose one of none, adain, wavelet"),
    ("sampler.guidance=abc", "sampler.guidance=abc: give a number"),
    ("sampler.positive_suffix=7", "sampler.positive_suffix=7: give words"),
    ("injection_scale=abc", "injection_scale=abc: give a number; 1 is as in training"),
    ("ckpt=nowhere", "no checkpoint at nowhere"),
    ("weights=nowhere ckpt=null", "weights=nowhere is no folder"),
    ("weights=nowhere", "both name a network"),
    ("ckpt=null weights_preset=dit4sr_q", "give their folder too"),
    ("device=gpu", "device=gpu: choose auto, cpu, or a GPU as cuda or cuda:1"),
    ("device=null", "device=None: choose auto"),
    ("device=meta", "device=meta: choose auto"),
    ("prompt.quantise=int4", "prompt.quantise=int4: choose one of"),
    ("max_megapixels=0", "max_megapixels=0 leaves no result"),
    ("input=", "say what to restore"),
    ("output=", "output= is empty"),
    ("acceleration.compile=all", "choose one of none, blocks, step"),
]


def config_of(folder: Path, checkpoint: Path, *overrides: str) -> Any:
    own = [f"input={folder / 'in'}", f"output={folder / 'out'}", f"ckpt={checkpoint}", "device=cpu", "sampler.steps=1"]
    return compose_verb("restore", *own, *overrides)


def test_nothing_is_too_late_to_be_refused(tmp_path: Path, checkpoint: Path) -> None:
    save(tmp_path / "in" / "a.png", picture(16, 16, 0))
    assert run(config_of(tmp_path, checkpoint)) == 0
    for overrides, words in REFUSED:
        with pytest.raises(UserError, match=words):
            run(config_of(tmp_path, checkpoint, *overrides.split()))


def test_values_that_a_checkpoint_may_complete_are_left_to_it() -> None:
    check_network(compose_verb("restore", "sampler.first_sigma=0.5"))
    with pytest.raises(UserError, match="starting from noise it is 1"):
        SamplerSettings.from_config(compose_verb("restore", "sampler.first_sigma=0.5").sampler)


def test_it_is_said_without_torch(tmp_path: Path) -> None:
    code = (
        "import sys; from dit4sr.cli import main; status = main('restore')\n"
        "heavy = {'torch', 'diffusers', 'transformers'} & set(sys.modules); print(status, sorted(heavy))"
    )
    root = Path(__file__).parents[2]
    for override in ("ckpt=nowhere", "sampler.steps=0", "device=gpu"):
        command = [sys.executable, "-c", code, f"input={tmp_path}", f"output={tmp_path / 'out'}", override]
        done = subprocess.run(command, capture_output=True, text=True, cwd=root, env=os.environ)
        assert done.stdout.strip() == "2 []", (override, done.stdout, done.stderr)
        assert len(done.stderr.splitlines()) == 1 and done.stderr.startswith("error: ")


def test_the_names_of_alignments_are_those_that_there_are() -> None:
    assert set(COLOURS) == set(ALIGN)


def test_the_demo_and_the_evaluation_ask_the_same(tmp_path: Path) -> None:
    for verb in ("evaluate", "demo"):
        with pytest.raises(UserError, match="no checkpoint at nowhere"):
            check_paths(compose_verb(verb, "ckpt=nowhere"))
        with pytest.raises(UserError, match="device=gpu: choose auto"):
            check_network(compose_verb(verb, "device=gpu"))


def test_a_pipe_among_the_photos_is_passed_over(tmp_path: Path, checkpoint: Path) -> None:
    save(tmp_path / "in" / "a.png", picture(16, 16, 0))
    os.mkfifo(tmp_path / "in" / "b.png")
    assert restore(tmp_path / "in", tmp_path / "out", checkpoint) == 0
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["a.png"]


def test_results_of_another_network_are_named(
    tmp_path: Path, checkpoint: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    save(tmp_path / "in" / "a.png", picture(16, 16, 0))
    assert run(config_of(tmp_path, checkpoint), {"sampler.steps"}) == 0
    capsys.readouterr()
    monkeypatch.chdir(checkpoint.parent)
    assert run(config_of(tmp_path, Path(checkpoint.name)), {"sampler.steps", "ckpt"}) == 0
    assert "other settings" not in capsys.readouterr().out, "the same file by another name"
    other = tmp_path / "other.ckpt"
    other.write_bytes(checkpoint.read_bytes())
    assert run(config_of(tmp_path, other), {"ckpt"}) == 0
    assert f"made with other settings, such as ckpt={checkpoint}" in capsys.readouterr().out
    assert run(config_of(tmp_path, checkpoint, "acceleration=int8", "injection_scale=1.2"), {"acceleration"}) == 0
    said = capsys.readouterr().out
    assert "injection_scale=1.0" in said and "acceleration.name=exact" in said

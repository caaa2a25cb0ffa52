"""The web demo refuses what it cannot serve in one line, before anything heavy is imported."""

from __future__ import annotations

import socket
import sys
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf
from tiny_checkpoint import compose_verb, write_checkpoint

from dit4sr.demo.run import examples_in, run
from dit4sr.demo.studio import Studio
from dit4sr.errors import UserError


@pytest.mark.parametrize("override", ["port=abc", "port=0", "port=70000", "upscale=0.5", "seed=x", "max_megapixels=no"])
def test_values_that_mean_nothing(override: str) -> None:
    with pytest.raises(UserError, match=f"^{override}"):
        run(compose_verb("demo", override))


def test_without_gradio_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gradio", None)
    with pytest.raises(UserError, match=r"needs Gradio: pip install 'dit4sr\[demo\]'"):
        run(compose_verb("demo"))


def test_a_port_that_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("gradio")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(UserError, match=f"port={port} cannot be served .Address already in use.: give another"):
            run(compose_verb("demo", f"port={port}"))


def test_this_machine_alone_is_served_unless_told_otherwise() -> None:
    assert compose_verb("demo").host == "127.0.0.1"


def test_examples_are_those_of_a_folder_that_is_there(tmp_path: Path) -> None:
    (tmp_path / "b.png").touch()
    (tmp_path / "a.png").touch()
    assert examples_in(str(tmp_path)) == [tmp_path / "a.png", tmp_path / "b.png"]
    assert examples_in(str(tmp_path / "nowhere")) == examples_in(None) == []


@pytest.mark.parametrize(
    ("override", "shown"), [("~prompt", ""), ("prompt=none", ""), ("prompt.fixed=a red cup", "a red cup")]
)
def test_what_the_prompt_field_shows_first(override: str, shown: str, tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "last.ckpt", "backbone=nano")
    given = [f"ckpt={tmp_path / 'last.ckpt'}", "device=cpu", "acceleration=none", f"paths.cache={tmp_path}", override]
    config: Any = OmegaConf.to_container(compose_verb("demo", *given), resolve=True)
    assert Studio.from_config(config, (), tmp_path).prompt == shown

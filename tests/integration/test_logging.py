"""What a verb leaves of Python's logging, and what it prints beside its own lines."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest
from tiny_checkpoint import TINY

from dit4sr.cli import main

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("multirun", [False, True])
def test_loggers_of_before_still_speak(
    multirun: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """As in a notebook, or where another program calls a verb."""
    before = [logging.getLogger(name) for name in ("somebody.else", "dit4sr.data", "lightning.pytorch", "PIL")]
    models = "model=dit4sr,variant_a" if multirun else "model=dit4sr"
    arguments = [*TINY, "plan=true", models, f"out={tmp_path}/out", *(["--multirun"] if multirun else [])]
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")
    monkeypatch.setattr(sys, "argv", ["train.py", *arguments])
    assert main("train") == 0
    assert not any(logger.disabled for logger in before)
    assert logging.getLogger().level <= logging.WARNING
    logging.getLogger().addHandler(caplog.handler)  # the verb has put its own in place of pytest's
    try:
        before[0].warning("still here")
    finally:
        logging.getLogger().removeHandler(caplog.handler)
    assert caplog.messages == ["still here"]


def printed(folder: Path, *arguments: str) -> list[str]:
    command = [sys.executable, str(ROOT / "train.py"), *TINY, "plan=true", *arguments]
    # Unbuffered, Python writes a line and its end one after the other, and processes at once write into each other's.
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=folder, env=environment)
    assert done.returncode == 0 and not done.stderr, done.stderr
    return done.stdout.splitlines()


@pytest.mark.timeout(900)  # six processes that import torch, of which a busy machine runs few at once
def test_a_multirun_prints_what_its_jobs_print(tmp_path: Path) -> None:
    """Hydra and its launchers have nothing to say, and libraries neither."""
    pytest.importorskip("hydra_plugins.hydra_joblib_launcher")
    alone = [line for model in ("dit4sr", "variant_a") for line in printed(tmp_path, f"model={model}", "out=unused")]
    for launcher in ("basic", "joblib"):
        settings = (f"hydra/launcher={launcher}", "model=dit4sr,variant_a", f"out={tmp_path / launcher}")
        assert sorted(printed(tmp_path, *settings, "--multirun")) == sorted(alone)

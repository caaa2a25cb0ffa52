"""One training per run folder."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from dit4sr.errors import UserError
from dit4sr.training.run_lock import locked

HOLD = (
    "import sys, time; from pathlib import Path; from dit4sr.training.run_lock import locked\n"
    "with locked(Path(sys.argv[1])):\n"
    "    print('held', flush=True); time.sleep(60)\n"
)


def test_a_second_run_is_refused_and_a_killed_one_leaves_nothing(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    with subprocess.Popen([sys.executable, "-c", HOLD, str(folder)], stdout=subprocess.PIPE, text=True) as first:
        assert first.stdout is not None and first.stdout.readline() == "held\n"
        with pytest.raises(UserError, match=f"process {first.pid} on"), locked(folder):
            pass
        first.kill()
    with locked(folder):
        (folder / "metrics.csv").touch()
    assert (folder / "metrics.csv").exists()


def test_a_refused_run_leaves_no_folder(tmp_path: Path) -> None:
    with pytest.raises(KeyError), locked(tmp_path / "run"):
        raise KeyError
    assert not (tmp_path / "run").exists()
    (tmp_path / "mine").mkdir()
    with locked(tmp_path / "mine"):
        pass
    assert (tmp_path / "mine").is_dir()


def test_an_unwritable_place_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="cannot be written to"), locked(tmp_path / "file" / "run"):
        pass
    assert os.listdir(tmp_path) == ["file"]

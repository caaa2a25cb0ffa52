"""What several modules of unit tests start from."""

from __future__ import annotations

from pathlib import Path

import pytest
from tiny_checkpoint import write_checkpoint


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The last checkpoint of a run of a tiny random network."""
    path = tmp_path_factory.mktemp("run") / "checkpoints" / "last.ckpt"
    write_checkpoint(path)
    return path


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Folders in reports are as they were given: relative ones make the golden files the same everywhere."""
    monkeypatch.chdir(tmp_path)
    return Path()

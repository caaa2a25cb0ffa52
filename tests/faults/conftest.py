"""Data that all fault tests train on."""

from pathlib import Path

import pytest

from dit4sr.data.prepare import ensure_embedded


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data folder with the embedded default's shards and benchmark."""
    folder = tmp_path_factory.mktemp("data")
    ensure_embedded(folder)
    return folder

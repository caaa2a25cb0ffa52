"""Settings of the whole suite."""

import os

# Before torch is imported anywhere: the tensors are tiny, and threads only cost time on them.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("WANDB_MODE", "offline")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def seeded() -> None:
    """Tests that draw from torch's global generator draw the same numbers in any order."""
    torch.manual_seed(0)


@pytest.fixture(scope="session", autouse=True)
def folders_of_their_own(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Tests that say nothing of folders write into none of the user's."""
    own = tmp_path_factory.mktemp("own")
    with pytest.MonkeyPatch.context() as patch:
        for name in ("DATA", "CACHE", "OUTPUTS"):
            patch.setenv(f"DIT4SR_{name}", str(own / name.lower()))
        yield


@pytest.fixture(scope="session")
def embedded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data folder with the embedded photos' shards and benchmark, to be read alone."""
    from dit4sr.data.prepare import ensure_embedded

    folder = tmp_path_factory.mktemp("data")
    ensure_embedded(folder)
    return folder


@pytest.fixture(scope="module")
def data(embedded: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same, a module's own: trainings may keep their caches there."""
    return Path(shutil.copytree(embedded, tmp_path_factory.mktemp("data"), dirs_exist_ok=True))

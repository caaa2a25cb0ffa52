"""Settings of the whole suite."""

import os

# Before torch is imported anywhere: the tensors are tiny, and threads only cost time on them.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("WANDB_MODE", "offline")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import pytest
import torch

torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def seeded() -> None:
    """Tests that draw from torch's global generator draw the same numbers in any order."""
    torch.manual_seed(0)

"""Metrics of two sets of images: the Fréchet distance of their features (FID, arXiv 1706.08500)."""

from __future__ import annotations

import contextlib
import io
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dit4sr.evaluation.catalogue import KNOWN

ENOUGH = 1000
"""Images; with fewer, FID says more about their number than about their quality."""


def warning_for(n: int) -> str | None:
    """What must be said of an FID over so few images."""
    if n >= ENOUGH:
        return None
    return f"FID over fewer than {ENOUGH} images is biased and noisy: compare it with nothing"


def fid(restored: Sequence[Path], truths: Sequence[Path], config: Mapping[str, Any], device: str) -> float:
    """FID between restored images and ground truths, by pyiqa's Inception v3 features.

    Args:
        restored, truths: PNG files of the two sets.
        config: configs/metrics.
        device: where to compute.

    Raises:
        MissingWeights: Inception's weights are not here or cannot be loaded.
    """
    import torch

    from dit4sr.evaluation.weights import WeightsFolder, create_network

    metric = create_network("fid", KNOWN["fid"], WeightsFolder.from_config(config), device)
    with tempfile.TemporaryDirectory(prefix="dit4sr-fid-") as temporary:
        folders = []
        for name, files in (("restored", restored), ("truth", truths)):
            folder = Path(temporary) / name
            folder.mkdir()
            for path in files:
                (folder / path.name).symlink_to(path.resolve())
            folders.append(str(folder))
        quiet = io.StringIO()
        with torch.inference_mode(), contextlib.redirect_stdout(quiet):
            return float(metric(*folders, mode="clean", num_workers=0, verbose=False))

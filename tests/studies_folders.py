"""Folders as evaluate.py leaves them, of small pictures."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from tiny_checkpoint import load, save, write_pairs

from dit4sr.evaluation.fidelity import psnr_y, ssim_y
from dit4sr.evaluation.tables import Row, write_rows

NAMES = ["a", "b", "c"]


def write_benchmark(folder: Path) -> None:
    """lq/ and hq/ with three pairs of 16 and 64 pixels."""
    write_pairs(folder, NAMES)


def noisy(truth: np.ndarray, amount: float, seed: int) -> np.ndarray:
    """A picture with Gaussian noise of that many grey levels."""
    noise = np.random.default_rng(seed).normal(0, amount, truth.shape)
    return np.clip(truth + noise, 0, 255).round().astype(np.uint8)


def write_evaluation(
    folder: Path,
    pairs: Path,
    *,
    method: str = "dit4sr",
    benchmark: str = "realsr",
    amount: float = 5.0,
    protocol: str = "ycbcr",
    truth: bool = True,
) -> None:
    """An evaluation whose results are the ground truth with noise; ``bicubic`` rows stand for the baseline."""
    rows = []
    for number, name in enumerate(NAMES):
        hq = load(pairs / "hq" / f"{name}.png")
        restored = noisy(hq, amount, number)
        save(folder / "restored" / f"{name}.png", restored)
        for who, image in ((method, restored), ("bicubic", noisy(hq, 8, number))):
            for metric, value in (("psnr", psnr_y(image, hq)), ("ssim", ssim_y(image, hq))):
                rows.append(Row(name, who, metric, value, protocol, "Y", 0, "0", 0))
    write_rows(folder / "per_image.csv", rows)
    summary = {
        "benchmark": {
            "name": benchmark,
            "upscale": 4.0,
            "lq": str(pairs / "lq"),
            "hq": str(pairs / "hq") if truth else "None",
        },
        "method": {"name": method, "backbone": "nano", "ckpt": "last.ckpt", "step": 7},
    }
    (folder / "summary.json").write_text(json.dumps(summary))

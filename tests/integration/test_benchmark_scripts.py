"""The benchmarks' scripts: tiny runs of each theme, the file of results, and the help."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
BENCHMARKS = ROOT / "benchmarks"

sys.path.insert(0, str(BENCHMARKS))

import measuring  # noqa: E402


def run(script: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(BENCHMARKS / script), *arguments],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=800,
    )


TINY = {
    "sampling.py": ["--backbones", "nano", "--variants", "exact", "--rounds", "1", "--steps", "1"],
    "memory.py": ["--sizes", "48", "96", "--models", "nano", "--guidance", "1"],
    "startup.py": ["--rounds", "1", "--budget", "60", "--commands", "train.py --help"],
    "degradation.py": ["--images", "2", "--size", "160", "--batch", "2"],
    "loading.py": ["--side", "96", "--crop", "64", "--batch", "2", "--workers", "0", "--rounds", "1"],
    "training.py": [
        "--batch",
        "1",
        "--rounds",
        "1",
        "--no-compile",
        "--peak",
        "1e12",
        "--by-lightning",
        "--steps",
        "6",
        "--workers",
        "0",
    ],
}
WORDS = {
    "sampling.py": ["plain", "folded, prepared ahead", "PSNR dB", "Speed against plain"],
    "memory.py": ["nano: MB", "bytes a pixel", "96²"],
    "startup.py": ["python -c pass", "train.py --help", "within", "package"],
    "degradation.py": ["worker engine", "literal, torch codec", "images/s"],
    "loading.py": ["degrading it", "workers", "samples/s"],
    "training.py": ["plain", "checkpointing", "MFU", "GFLOP of a crop", "By Lightning from shards", "data wait"],
}


@pytest.mark.parametrize("script", TINY)
def test_a_tiny_run_prints_its_table_and_writes_it(script: str, tmp_path: Path) -> None:
    extra = ["--trace", str(tmp_path / "trace.json")] if script == "training.py" else []
    done = run(script, *TINY[script], *extra, "--note", "a test", "--out", str(tmp_path))
    assert done.returncode == 0, done.stdout[-1000:] + done.stderr[-2000:]
    (written,) = tmp_path.glob("*.md")
    theme = "start-up" if script == "startup.py" else script.removesuffix(".py")
    assert written.name.startswith(f"{theme}_cpu_20")
    text = written.read_text(encoding="utf-8")
    for word in (*WORDS[script], "torch", "a test", f"python benchmarks/{script}"):
        assert word in text and word in done.stdout + f"python benchmarks/{script}", word
    if extra:
        assert any(
            event.get("name") == "training step" for event in json.loads(Path(extra[1]).read_text())["traceEvents"]
        )


def test_the_profile_adds_up(tmp_path: Path) -> None:
    done = run("training.py", "--profile", "--steps", "4")
    assert done.returncode == 0, done.stdout[-1000:] + done.stderr[-2000:]
    for part in ("network, forward", "network, backward", "optimiser", "waiting for data", "progress", "logging"):
        assert f"| {part} |" in done.stdout, part
    assert "The model's own work" in done.stdout and "| network |" in done.stdout


def test_over_its_budget_start_up_fails() -> None:
    done = run("startup.py", "--rounds", "1", "--budget", "0.001", "--commands", "train.py --help")
    assert done.returncode == 1 and "takes too long" in done.stdout


def test_ratios_are_of_the_same_round() -> None:
    """A machine that slows down twofold between rounds changes medians, not ratios."""
    measured = measuring.summarised({"a": [1.0, 2.0, 4.0], "b": [0.5, 1.0, 2.0]}, "a")
    assert measured["a"].ratio == 1 and measured["b"].ratio == 2 and measured["b"].seconds == 1
    assert "| b | 1000.0 (750.0–1500.0) | 2.00× |" in measuring.comparison(measured)


def test_actions_take_turns() -> None:
    order: list[str] = []
    measuring.paired({"a": lambda: order.append("a"), "b": lambda: order.append("b")}, rounds=2, warm_up=1)
    assert order == ["a", "b", "a", "b", "a", "b"]

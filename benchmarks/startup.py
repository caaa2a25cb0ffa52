"""Time what a person waits for before anything happens: ``python benchmarks/startup.py --help``.

Real processes: ``train.py --help``, a config error, ``evaluate.py --help``, a missing checkpoint; each against a bare
``python -c pass`` in the same round. The imports that take longest are shown by ``python -X importtime``. Ends with
status 1 where the median of a command is over the budget.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from measuring import Report, add_arguments, milliseconds, summarised, table

ROOT = Path(__file__).resolve().parents[1]

BASELINE = "python -c pass"

COMMANDS: dict[str, tuple[Sequence[str], int]] = {
    BASELINE: (["-c", "pass"], 0),
    "train.py --help": (["train.py", "--help"], 0),
    "train.py model=nonsense": (["train.py", "model=nonsense"], 2),
    "train.py training.steps.x=1": (["train.py", "training.steps.x=1"], 2),
    "evaluate.py --help": (["evaluate.py", "--help"], 0),
    "restore.py --help": (["restore.py", "--help"], 0),
    "prepare.py --help": (["prepare.py", "--help"], 0),
}
"""What is run, and the exit status that is right."""

HEAVY = ("torch", "diffusers", "transformers", "lightning", "cv2", "pyiqa", "wandb", "pandas", "matplotlib")
"""Packages that ``--help`` must not import: each takes a good part of the budget or more."""


def run(arguments: Sequence[str], expected: int) -> float:
    """Seconds of a command, Python's own start included."""
    began = time.perf_counter()
    done = subprocess.run([sys.executable, *arguments], cwd=ROOT, capture_output=True, text=True)
    took = time.perf_counter() - began
    if done.returncode != expected:
        raise SystemExit(f"{' '.join(arguments)} ended with {done.returncode}, not {expected}: {done.stderr[-500:]}")
    return took


def imports(arguments: Sequence[str]) -> list[tuple[str, float]]:
    """Top-level packages that a command imports, with their seconds (what they import included), longest first."""
    done = subprocess.run(
        [sys.executable, "-X", "importtime", *arguments], cwd=ROOT, capture_output=True, text=True, env=os.environ
    )
    seconds: dict[str, float] = {}
    for line in done.stderr.splitlines():
        if not line.startswith("import time:") or "cumulative" in line:
            continue
        _, cumulative, name = line.removeprefix("import time:").split("|")
        package = name.strip().partition(".")[0]
        seconds[package] = max(seconds.get(package, 0.0), int(cumulative) / 1e6)
    return sorted(seconds.items(), key=lambda pair: -pair[1])


def main() -> int:
    """Print the tables; 1 over the budget."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--budget", type=float, default=2.0, help="seconds that a command may take (default 2)")
    parser.add_argument("--commands", nargs="+", choices=list(COMMANDS)[1:], default=list(COMMANDS)[1:])
    add_arguments(parser, rounds=5)
    arguments = parser.parse_args()

    report = Report("start-up", "cpu", arguments.note)
    values: dict[str, list[float]] = {label: [] for label in (BASELINE, *arguments.commands)}
    for turn in range(arguments.rounds + 1):
        for label, own in values.items():
            took = run(*COMMANDS[label])
            if turn:  # the first fills the disk's cache
                own.append(took)
    measured = summarised(values, BASELINE)
    over = [label for label in arguments.commands if measured[label].seconds > arguments.budget]
    bare = measured[BASELINE].seconds
    rows = [[BASELINE, milliseconds(measured[BASELINE]), "–", "–"]]
    for label in arguments.commands:
        m = measured[label]
        rows.append([label, milliseconds(m), f"{m.seconds - bare:.2f} s", "over" if label in over else "within"])
    head = ["command", "median ms (quartiles)", f"more than {BASELINE}", f"budget {arguments.budget:g} s"]
    report.say(table(rows, head) + "\n")

    found = imports(COMMANDS["train.py --help"][0])
    heavy = [package for package, _ in found if package in HEAVY]
    report.say(f"Imports of `train.py --help` (heavy ones: {', '.join(heavy) or 'none'}):\n")
    report.say(table([[name, f"{1000 * took:.0f}"] for name, took in found[:8]], ["package", "ms"]))
    if over or heavy:
        report.say(f"\nFAILED: {'; '.join([f'{label} takes too long' for label in over] + heavy)}")
    report.write(arguments.out)
    return 1 if over or heavy else 0


if __name__ == "__main__":
    sys.exit(main())

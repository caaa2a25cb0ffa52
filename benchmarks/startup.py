"""Time what a person waits for before anything happens: ``python benchmarks/startup.py --help``.

Real processes: ``--help``, wrong values and missing files of every verb; each against a bare ``python -c pass`` in the
same round. ``python -X importtime`` tells what each imports, and what takes longest in ``train.py --help``. Ends with
status 1 where the median of a command is over the budget, or a command imports a heavy package.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
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
    "train.py out=": (["train.py", "out="], 2),
    "evaluate.py --help": (["evaluate.py", "--help"], 0),
    "evaluate.py ckpt=nowhere": (["evaluate.py", "ckpt=nowhere"], 2),
    "evaluate.py without a checkpoint": (["evaluate.py"], 2),
    "evaluate.py sampler.steps=0": (["evaluate.py", "sampler.steps=0"], 2),
    "evaluate.py method=folder": (["evaluate.py", "method=folder"], 2),
    "evaluate.py method.path=nowhere": (["evaluate.py", "method=spandrel", "method.path=nowhere"], 2),
    "evaluate.py paths.benchmarks=nowhere": (
        ["evaluate.py", "method=bicubic", "benchmark=realsr", "paths.benchmarks=nowhere"],
        2,
    ),
    "restore.py --help": (["restore.py", "--help"], 0),
    "restore.py input=nowhere": (["restore.py", "input=nowhere"], 2),
    "restore.py ckpt=nowhere": (["restore.py", "input=.", "ckpt=nowhere"], 2),
    "restore.py sampler.steps=0": (["restore.py", "input=.", "sampler.steps=0"], 2),
    "prepare.py --help": (["prepare.py", "--help"], 0),
    "prepare.py patch=0": (["prepare.py", "patch=0"], 2),
    "prepare.py source=nowhere": (["prepare.py", "source=nowhere"], 2),
    "export ckpt=nowhere": (["-m", "dit4sr", "export", "ckpt=nowhere"], 2),
    "export what=nonsense": (["-m", "dit4sr", "export", "what=nonsense"], 2),
    "demo ckpt=nowhere": (["-m", "dit4sr.demo", "ckpt=nowhere"], 2),
    "demo sampler.steps=0": (["-m", "dit4sr.demo", "sampler.steps=0"], 2),
}
"""What is run, and the exit status that is right; nothing is there under ``paths.outputs``."""

HEAVY = ("torch", "diffusers", "transformers", "lightning", "pyiqa", "wandb", "pandas", "matplotlib", "gradio")
"""Packages that none of these must import: each takes a good part of the budget or more."""


def run(arguments: Sequence[str], expected: int, outputs: str) -> float:
    """Seconds of a command, Python's own start included."""
    began = time.perf_counter()
    done = subprocess.run(
        [sys.executable, *arguments], cwd=ROOT, capture_output=True, text=True, env=environment(outputs)
    )
    took = time.perf_counter() - began
    if done.returncode != expected:
        raise SystemExit(f"{' '.join(arguments)} ended with {done.returncode}, not {expected}: {done.stderr[-500:]}")
    return took


def environment(outputs: str) -> dict[str, str]:
    """This process's, with another folder for what the verbs write."""
    return {**os.environ, "DIT4SR_OUTPUTS": outputs}


def imports(arguments: Sequence[str], outputs: str) -> list[tuple[str, float]]:
    """Top-level packages that a command imports, with their seconds (what they import included), longest first."""
    done = subprocess.run(
        [sys.executable, "-X", "importtime", *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        env=environment(outputs),
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

    with tempfile.TemporaryDirectory(prefix="dit4sr-startup-") as outputs:
        return measure(arguments, outputs)


def measure(arguments: argparse.Namespace, outputs: str) -> int:
    """Time the commands and list their imports; 1 where something is not as it should be."""
    report = Report("start-up", "cpu", arguments.note)
    values: dict[str, list[float]] = {label: [] for label in (BASELINE, *arguments.commands)}
    for turn in range(arguments.rounds + 1):
        for label, own in values.items():
            took = run(*COMMANDS[label], outputs)
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

    found = {label: imports(COMMANDS[label][0], outputs) for label in ("train.py --help", *arguments.commands)}
    heavy = [f"{label} imports {name}" for label, packages in found.items() for name, _ in packages if name in HEAVY]
    report.say(f"Heavy packages that these import ({', '.join(HEAVY)}): {'; '.join(heavy) or 'none'}.\n")
    report.say("Imports of `train.py --help`:\n")
    report.say(table([[name, f"{1000 * took:.0f}"] for name, took in found["train.py --help"][:8]], ["package", "ms"]))
    if over or heavy:
        report.say(f"\nFAILED: {'; '.join([f'{label} takes too long' for label in over] + heavy)}")
    report.write(arguments.out)
    return 1 if over or heavy else 0


if __name__ == "__main__":
    sys.exit(main())

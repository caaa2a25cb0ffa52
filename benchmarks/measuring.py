"""What the benchmarks share: actions timed turn by turn, a table of medians and ratios, and the file of results.

Actions take turns within each round, so that whatever else the machine does slows them all: a ratio is the median over
the rounds of (the baseline's time / the action's time in the same round), above 1 where the action is faster.
"""

from __future__ import annotations

import argparse
import datetime
import platform
import shlex
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).resolve().parent / "results"


@dataclass(frozen=True)
class Measured:
    """One action.

    Attributes:
        seconds: median over the rounds.
        low, high: the rounds' quartiles.
        ratio: median over the rounds of baseline's time / this one's; 1 for the baseline itself.
        values: seconds of every round.
    """

    seconds: float
    low: float
    high: float
    ratio: float
    values: tuple[float, ...]


def choose_device(parser: argparse.ArgumentParser, name: str) -> None:
    """Make the GPU that ``--device`` names the current one: what is waited for, and whose memory is counted, is its.

    Args:
        parser: ends the program, by its error, where there is no such device.
        name: cpu, cuda, or cuda with a number.
    """
    if name == "cpu":
        return
    import torch

    try:
        device = torch.device(name)
    except RuntimeError:  # no device of any kind
        device = torch.device("meta")
    if device.type != "cuda":
        parser.error(f"--device {name}: choose cpu, cuda or, of several GPUs, cuda:0, cuda:1, …")
    if not torch.cuda.is_available():
        parser.error(f"--device {name}: torch finds no GPU here")
    if device.index is not None:
        if device.index >= (there := torch.cuda.device_count()):
            parser.error(f"--device {name}: the last GPU here is cuda:{there - 1}")
        torch.cuda.set_device(device)


def synchronise(device: str) -> None:
    """Wait for what a GPU still computes; nothing on the CPU."""
    if device.startswith("cuda"):
        import torch

        torch.cuda.synchronize()


def seconds_of(action: Callable[[], object], device: str = "cpu") -> float:
    """Wall-clock seconds of one call, the device's work included."""
    synchronise(device)
    began = time.perf_counter()
    action()
    synchronise(device)
    return time.perf_counter() - began


def paired(
    actions: Mapping[str, Callable[[], object]],
    *,
    baseline: str | None = None,
    rounds: int = 7,
    warm_up: int = 2,
    device: str = "cpu",
    until: float = float("inf"),
) -> dict[str, Measured]:
    """Time actions turn by turn.

    Args:
        actions: label → what is timed.
        baseline: label to which the ratios refer; None is the first.
        rounds: timed calls of each.
        warm_up: calls of each before (compilation, caches).
        device: cpu or cuda…; a GPU's work is waited for.
        until: of ``time.monotonic``: a round that would end later is not begun, but for the first.
    """
    baseline = next(iter(actions)) if baseline is None else baseline
    for action in actions.values():
        for _ in range(warm_up):
            seconds_of(action, device)
    values: dict[str, list[float]] = {label: [] for label in actions}
    took = 0.0
    for turn in range(rounds):
        began = time.monotonic()
        if turn and began + took > until:
            break
        for label, action in actions.items():
            values[label].append(seconds_of(action, device))
        took = time.monotonic() - began
    return summarised(values, baseline)


def summarised(values: Mapping[str, Sequence[float]], baseline: str) -> dict[str, Measured]:
    """Medians and ratios of seconds that were measured in rounds: the n-th values of all labels belong together."""
    summary = {}
    for label, own in values.items():
        low, _, high = statistics.quantiles(own, n=4, method="inclusive") if len(own) > 1 else (own[0],) * 3
        ratio = statistics.median(b / o for b, o in zip(values[baseline], own, strict=True))
        summary[label] = Measured(statistics.median(own), low, high, ratio, tuple(own))
    return summary


def milliseconds(measured: Measured) -> str:
    """Median and quartiles in words."""
    return f"{1000 * measured.seconds:.1f} ({1000 * measured.low:.1f}–{1000 * measured.high:.1f})"


def table(rows: Sequence[Sequence[Any]], head: Sequence[str]) -> str:
    """A table in Markdown: the first column to the left, the others to the right."""
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    return "\n".join("| " + " | ".join(str(cell) for cell in line) + " |" for line in lines)


def comparison(
    measured: Mapping[str, Measured],
    *,
    what: str = "variant",
    columns: Mapping[str, Mapping[str, str]] | None = None,
    missing: Mapping[str, str] | None = None,
) -> str:
    """The table of medians, quartiles and ratios.

    Args:
        measured: of :func:`paired`.
        what: head of the first column.
        columns: more of them: head → label → cell.
        missing: label → why there is no figure: rows of their own.
    """
    columns = columns or {}
    rows = [
        [label, milliseconds(m), f"{m.ratio:.2f}×", *(cells.get(label, "–") for cells in columns.values())]
        for label, m in measured.items()
    ]
    rows += [[label, why, "–", *("–" for _ in columns)] for label, why in (missing or {}).items()]
    return table(rows, [what, "median ms (quartiles)", f"speed against {next(iter(measured))}", *columns])


def machine(device: str) -> str:
    """The device, its threads or driver, and the versions, in a line."""
    import torch

    from dit4sr.studies.timing import device_name

    parts = [device_name(torch.device(device)), f"Python {platform.python_version()}", f"torch {torch.__version__}"]
    if device.startswith("cuda"):
        parts += [f"CUDA {torch.version.cuda}", f"cuDNN {torch.backends.cudnn.version()}"]
    return ", ".join(parts)


def in_a_line(error: BaseException) -> str:
    """What went wrong, for a cell of a table."""
    return f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"


@dataclass
class Report:
    """What a benchmark prints, and writes where ``--out`` asks for it.

    Attributes:
        theme: sampling, training, …: the first part of the file's name.
        device: cpu or cuda….
        note: of the circumstances, such as "shared machine".
    """

    theme: str
    device: str
    note: str = ""
    lines: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.say(f"{machine(self.device)}{f'; {self.note}' if self.note else ''}\n")

    def say(self, text: str = "") -> None:
        """Print a line or a table, and keep it."""
        print(text, flush=True)
        self.lines.append(text)

    def write(self, out: str | None) -> Path | None:
        """Write ``<theme>_<device>_<date>.md`` with the command.

        Args:
            out: None writes nothing, ``auto`` into ``benchmarks/results``, else a folder.
        """
        if out is None:
            return None
        from dit4sr.files import write_atomically

        name = "cpu"
        if self.device.startswith("cuda"):
            import torch

            name = torch.cuda.get_device_name().split()[-1].lower().replace("/", "-")
        folder = RESULTS if out == "auto" else Path(out)
        path = folder / f"{self.theme}_{name}_{datetime.date.today():%Y-%m-%d}.md"
        command = shlex.join(["python", f"benchmarks/{Path(sys.argv[0]).name}", *sys.argv[1:]])
        with write_atomically(path) as temporary:
            text = "\n".join(self.lines)
            temporary.write_text(f"# {self.theme.capitalize()}\n\n`{command}`\n\n{text}\n", encoding="utf-8")
        print(f"\n{path}")
        return path


def add_arguments(parser: argparse.ArgumentParser, *, rounds: int | None = 7, default: str = "") -> None:
    """The arguments that every theme has: --device, --rounds, --note, --out; ``default`` says in words what rounds are
    where there is no one number."""
    parser.add_argument("--device", default="cpu", help="cpu, cuda or cuda:1 … (default cpu)")
    parser.add_argument(
        "--rounds", type=int, default=rounds, help=f"timed calls of each variant (default {default or rounds})"
    )
    parser.add_argument(
        "--note", default="", help='circumstances to state beside the figures, such as "shared machine"'
    )
    parser.add_argument(
        "--out",
        nargs="?",
        const="auto",
        help="write <theme>_<device>_<date>.md, into benchmarks/results or this folder",
    )

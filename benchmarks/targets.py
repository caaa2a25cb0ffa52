"""What one H200 is to reach in sampling, and the tables that sum a run up."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass

from measuring import Measured, Report, table


@dataclass(frozen=True)
class Target:
    """What one H200 is to reach at 512×512, bfloat16, 40 guided steps.

    Attributes:
        model, batch: which table.
        labels: rows that may reach it; None are all that are not approximate.
        quantity: ``seconds`` (an image), ``ratio`` (to plain) or ``rate`` (images a second).
        bound: at most, of seconds; else at least.
    """

    model: str
    batch: int
    labels: tuple[str, ...] | None
    quantity: str
    bound: float


TARGETS = (
    Target("dit4sr", 1, None, "seconds", 0.75),
    Target("dit4sr", 1, None, "ratio", 1.5),
    Target("dit4sr", 8, None, "rate", 1.3),
    Target("dit4sr", 1, ("fp8",), "seconds", 0.5),
    Target("sd3_controlnet", 1, None, "ratio", 1.5),
)


def misses_its_time(model: str, batch: int, measured: Measured) -> bool:
    """Whether a row that is not approximate takes longer than its target says."""
    own = [t for t in TARGETS if (t.model, t.batch, t.labels, t.quantity) == (model, batch, None, "seconds")]
    return any(measured.seconds > t.bound for t in own)


def targets_table(
    report: Report, results: Mapping[tuple[str, int], Mapping[str, Measured]], approximate: Collection[str]
) -> None:
    """What one H200 is to reach, and what was reached here.

    Args:
        report: gets the table.
        results: (model, batch) → label → what was measured.
        approximate: labels of rows whose results differ.
    """
    words = {"seconds": "s an image", "ratio": "× plain", "rate": "images/s"}
    rows = []
    for target in TARGETS:
        measured = results.get((target.model, target.batch), {})
        own = [n for n in measured if (n in target.labels if target.labels else n not in approximate)]
        values: dict[str, Callable[[Measured], float]] = {
            "seconds": lambda m: m.seconds,
            "ratio": lambda m: m.ratio,
            "rate": lambda m, batch=target.batch: batch / m.seconds,  # type: ignore[misc]
        }
        at_most = target.quantity == "seconds"
        reached = {n: values[target.quantity](measured[n]) for n in own}
        which = " or ".join(target.labels) if target.labels else "without approximation"
        row = [f"{target.model}, batch {target.batch}, {which}"]
        row.append(f"{'≤' if at_most else '≥'} {target.bound:g} {words[target.quantity]}")
        if not reached:
            rows.append([*row, "not measured", "–"])
            continue
        best = (min if at_most else max)(reached, key=lambda n: reached[n])
        met = reached[best] <= target.bound if at_most else reached[best] >= target.bound
        rows.append([*row, f"{reached[best]:.3g} ({best})", "met" if met else "missed"])
    report.say("\n## Targets of one H200, 512×512, bfloat16, 40 guided steps\n")
    report.say(table(rows, ["what", "target", "here", ""]))


def summary(report: Report, results: Mapping[str, Mapping[str, Measured]]) -> None:
    """Speed against plain of all tables side by side.

    Args:
        report: gets the table.
        results: head of a column → label → what was measured.
    """
    labels = list(dict.fromkeys(label for measured in results.values() for label in measured if label != "plain"))
    rows = [
        [f"`{label}`", *(f"{m[label].ratio:.2f}" if label in m else "not measured" for m in results.values())]
        for label in labels
    ]
    report.say("\n## Speed against plain\n")
    report.say(table(rows, ["", *results]))

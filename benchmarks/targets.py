"""What one H200 is to reach in sampling, and the tables that sum a run up."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass

from measuring import Measured, Report, table
from variants import Part


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


BACKBONE, STEPS, GUIDANCE = "sd35_medium", 40, 8.0
"""What the targets are about; figures of anything else are not held against them."""

TARGETS = (
    Target("dit4sr", 1, None, "seconds", 0.75),
    Target("dit4sr", 1, None, "ratio", 1.5),
    Target("dit4sr", 8, None, "rate", 1.3),
    Target("dit4sr", 1, ("fp8",), "seconds", 0.5),
    Target("sd3_controlnet", 1, None, "ratio", 1.5),
)


def of_the_targets(backbone: str, arguments: argparse.Namespace) -> bool:
    """Whether a table of this backbone, by the command line's other settings, may be held against the targets."""
    if arguments.device == "cpu" or arguments.ckpt:
        return False
    return (backbone, arguments.steps or STEPS, arguments.guidance) == (BACKBONE, STEPS, GUIDANCE)


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
        results: (model, batch) → label → what was measured, of samplings :func:`of_the_targets`.
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
    report.say(f"\n## Targets of one H200, 512×512, bfloat16, {STEPS} guided steps\n")
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


def sum_up(
    report: Report,
    results: Mapping[Part, Mapping[str, Measured]],
    arguments: argparse.Namespace,
    approximate: Collection[str],
) -> None:
    """The targets, of the tables that may be held against them; the other tables side by side.

    Args:
        report: gets the tables.
        results: table → label → what was measured.
        arguments: the command line's.
        approximate: labels of rows whose results differ.
    """
    by_case: dict[tuple[str, str, int], dict[str, Measured]] = {}
    for part, measured in results.items():
        case = part.model, part.backbone, part.batch
        by_case[case] = dict(measured) | by_case.get(case, {})
    held = {(m, batch): found for (m, b, batch), found in by_case.items() if of_the_targets(b, arguments)}
    if held:
        targets_table(report, held, approximate)
    if others := {case: found for case, found in by_case.items() if not of_the_targets(case[1], arguments)}:
        summary(report, {f"{m} on {b}, batch {batch}": found for (m, b, batch), found in others.items()})

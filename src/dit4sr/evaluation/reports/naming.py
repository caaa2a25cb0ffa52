"""What the methods of several runs are called in one table, and which runs are one method under several seeds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from dit4sr.errors import UserError
from dit4sr.evaluation.reports.runs import Run

BICUBIC = "bicubic"

UNIMPORTANT = ("name", "ckpt", "training_seed", "device", "images")
"""Facts in which runs of one method may differ: where it is, its seed, where it ran."""

MOST_DIFFERING = 2
"""Facts that a label names; with more, it names the folder."""


def label_runs(runs: Sequence[Run]) -> list[tuple[str, list[Run]]]:
    """Label → runs that are one row, in the order given; of one benchmark.

    Runs to which the user gave one label are one row. So are runs with one name and the same facts that differ in
    the seed of training or of sampling. Otherwise runs with one name get labels that say in what they differ.

    Raises:
        UserError: another method is labelled as the baseline.
    """
    for run in runs:
        if run.label == BICUBIC != run.method:
            raise UserError(f"report: {run.folder} cannot be labelled {BICUBIC}, the baseline's name: choose another")
    rows: list[tuple[str, list[Run]]] = []
    by_name: dict[tuple[bool, str], list[Run]] = {}
    for run in runs:
        by_name.setdefault((run.label is not None, run.label or run.method), []).append(run)
    for (given, name), members in by_name.items():
        if given:
            rows.append((name, members))
            continue
        groups: dict[str, list[Run]] = {}
        for run in members:
            groups.setdefault(repr(sorted(_important(run).items())), []).append(run)
        parts = [part for group in groups.values() for part in ([group] if seeds_differ(group) else _each(group))]
        if len(parts) == 1 or name == BICUBIC:
            rows += [(name, members)]
        else:
            rows += zip(_labels(name, parts), parts, strict=True)
    taken = [label for label, _ in rows]
    return [
        (label if taken.count(label) == 1 else f"{label} ({members[0].folder.as_posix()})", members)
        for label, members in rows
    ]


def own_label(run: Run, label: str, method: str) -> str:
    """The label of one of a run's methods: its own, or its average or control, which keep their words."""
    if method == run.method or method.startswith(f"{run.method} ("):
        return label + method[len(run.method) :]
    return method


def _important(run: Run) -> dict[str, Any]:
    flat = _flat(run.facts)
    return {name: value for name, value in flat.items() if name not in UNIMPORTANT}


def _flat(facts: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in facts.items():
        if isinstance(value, Mapping):
            found |= _flat(value, f"{prefix}{name}.")
        else:
            found[prefix + name] = value
    return found


def seeds_differ(group: Sequence[Run]) -> bool:
    """Whether no two runs have the same seed of training and of sampling."""
    seen = [(run.facts.get("training_seed"), seed) for run in group for seed in sorted({row.seed for row in run.rows})]
    return len(set(seen)) == len(seen)


def _each(group: Sequence[Run]) -> list[list[Run]]:
    return [[run] for run in group]


def _labels(name: str, parts: Sequence[Sequence[Run]]) -> list[str]:
    facts = [_important(part[0]) for part in parts]
    keys = dict.fromkeys(key for f in facts for key in f)
    differing = [key for key in keys if len({repr(f.get(key)) for f in facts}) > 1 and key != "path"]
    if 0 < len(differing) <= MOST_DIFFERING:
        short = [", ".join(f"{key.rpartition('.')[2]} {f.get(key, '–')}" for key in differing) for f in facts]
        if len(set(short)) == len(short) and max(map(len, short)) <= 40:
            return [f"{name} ({words})" for words in short]
    folders = [part[0].folder for part in parts]
    names = [folder.name for folder in folders]
    distinct = len(set(names)) == len(names) and all(names)
    return [f"{name} ({folder.name if distinct else folder.as_posix()})" for folder in folders]

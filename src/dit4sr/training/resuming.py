"""Going on with a run: from which checkpoint, and whether it is the same run."""

from __future__ import annotations

import re
import secrets
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dit4sr.errors import UserError
from dit4sr.training.checkpoint_files import newest_valid

STREAM = ("seed", "data.batch_size", "data.lanes", "data.order", "data.shuffle_buffer")
"""What decides which sample comes when: with another value a resumed run repeats some samples and misses others."""

FIXED = ("training.optimizer",)
"""What the saved state is of."""

PLACES = re.compile(r"data\.(shards|lq|hq|sources\[\d+\]\.shards)")
"""Where the data lies: it may have been moved."""

FREE = (
    "training.steps",
    "training.batch_size",  # data.batch_size says it
    "training.gradient_checkpointing",
    "training.compile",
    "data.max_bad_share",
    "data.workers",
    "data.cache",
    "data.cache_gb",
    "data.retries",
    "data.storage_options",
)
"""What may change without a word: it does not change what is computed."""


def resume_from(resume: str, out: Path) -> Path | None:
    """The checkpoint to go on from: ``never`` none, ``auto`` the run folder's newest whole one, else the path given.

    Raises:
        UserError: where the path given does not exist.
    """
    if resume == "never":
        return None
    if resume == "auto":
        return newest_valid(out / "checkpoints", warn=lambda line: print(line, file=sys.stderr))
    if not Path(resume).exists():
        raise UserError(f"resume={resume}: there is no such checkpoint; choose auto, never or the path of one")
    return Path(resume)


def check_same_run(path: Path, saved: Mapping[str, Any], wanted: Mapping[str, Any], *, allow: bool = False) -> bool:
    """Refuse to go on with another optimiser, stream of data or recipe; say what else has changed.

    Settings that one of the two configs does not have (those of another version of this code), and the places where
    the data lies, are named in a warning alone.

    Args:
        path: of the checkpoint, for the message.
        saved: the config in the checkpoint (``dit4sr``).
        wanted: the run's config.
        allow: go on with the new settings all the same (but for another optimiser, whose state would not fit).

    Returns:
        Whether the recipe is another one.

    Raises:
        UserError: naming the fields and both values.
    """
    ours, theirs = ({n: v for part in ("seed", "data", "degradation", "training") for n, v in _flat(part, c.get(part))}
                    for c in (wanted, saved))  # fmt: skip
    changed = {n: f"{n}: {theirs.get(n)} → {ours.get(n)}" for n in sorted(ours.keys() | theirs.keys())
               if n not in FREE and ours.get(n) != theirs.get(n)}  # fmt: skip
    if fixed := [changed[n] for n in FIXED if n in changed]:
        raise UserError(f"{path} cannot go on with another optimiser ({'; '.join(fixed)}): give another out=<folder>")
    stream = [changed[n] for n in STREAM if n in changed]
    recipe = [line for n, line in changed.items() if n in ours and n in theirs and n not in STREAM
              and not PLACES.fullmatch(n)]  # fmt: skip
    if (stream or recipe) and not allow:
        what = "on another stream of samples" if stream else "with another recipe"
        raise UserError(
            f"{path} was trained {what} ({'; '.join(stream + recipe)}): give the same values, another "
            "out=<folder>, or resume_changes=true to go on with the new ones"
        )
    steps = (saved.get("steps"), wanted["trainer"]["max_steps"]) if "trainer" in wanted else (None, None)
    if wanted["training"]["schedule"] != "constant" and steps[0] not in (None, steps[1]):
        changed["steps"] = f"steps of the {wanted['training']['schedule']} schedule: {steps[0]} → {steps[1]}"
    if changed:
        print(f"warning: going on from {path} with changes: {'; '.join(changed.values())}", file=sys.stderr)
    return bool(recipe)


def _flat(name: str, value: Any) -> list[tuple[str, Any]]:
    if isinstance(value, Mapping):
        return [pair for key, inner in value.items() for pair in _flat(f"{name}.{key}", inner)]
    if isinstance(value, Sequence) and any(isinstance(inner, Mapping) for inner in value):
        parts = [pair for number, inner in enumerate(value) for pair in _flat(f"{name}[{number}]", inner)]
        return [(name, len(value)), *parts]
    return [(name, list(value) if isinstance(value, tuple) else value)]


def run_id(saved: Mapping[str, Any] | None) -> str:
    """The run's id in W&B: of the run that is resumed, wherever its folder lies now; else a new one."""
    known = None if saved is None else saved["dit4sr"].get("run_id")
    return str(known or secrets.token_hex(6))

"""What tells one set of files from another without reading them: names, sizes and times of change."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from dit4sr.evaluation.methods import Method

PLACES = ("ckpt", "path", "images")
"""Settings of a method that name a file or a folder."""

UNIMPORTANT = ("device",)
"""Settings of a method that its results should not depend on."""


def file_facts(path: Path) -> tuple[str, int, int]:
    """(path, bytes, time of change)."""
    state = path.stat()
    return str(path), state.st_size, state.st_mtime_ns


def method_facts(method: Method) -> dict[str, Any]:
    """A method's settings, with what tells the files that it reads."""
    facts: dict[str, Any] = {k: v for k, v in method.settings.items() if k not in UNIMPORTANT}
    for name in PLACES:
        if name not in facts:
            continue
        files: list[Path] = []
        for path in map(Path, facts[name] if isinstance(facts[name], list) else [str(facts[name])]):
            files += sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]
        facts[name] = [file_facts(file) for file in files if file.exists()]
    return facts

"""What an evaluation has finished, image by image, so that a killed one continues where it was.

One file a process, one line an image, flushed to the disk as soon as the image is measured; a line that was cut
off by a kill is left out. The files belong to one set of settings: with others, the evaluation starts anew.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

from dit4sr.errors import UserError
from dit4sr.files import write_atomically

SETTINGS = "settings.json"

Key = tuple[str, int]
"""An image's name and a seed."""


@dataclass(frozen=True)
class Entry:
    """A finished image under one seed.

    Attributes:
        image, seed: which.
        values: method → metric → a value for each sample.
        seconds: of restoring it, all samples together.
        warm_up: whether they include the first batch of its size in its process, see
            :func:`dit4sr.evaluation.results.seconds_of_a_sample`.
    """

    image: str
    seed: int
    values: dict[str, dict[str, list[float]]]
    seconds: float
    warm_up: bool = False

    @property
    def key(self) -> Key:
        return self.image, self.seed


def prepare(folder: Path, settings: Mapping[str, Any], *, keep: bool) -> str | None:
    """Make the journal's folder ready for these settings; by one process, before any opens it.

    Args:
        folder: of the journal.
        settings: all that the values depend on, as JSON.
        keep: continue an earlier evaluation of the same settings.

    Returns:
        In words, why an earlier evaluation is not continued; None where it is, or there is none.

    Raises:
        UserError: where another evaluation is writing there.
    """
    hashed = {name: digest(value) for name, value in settings.items()}
    said = None
    if folder.is_dir():
        for path in folder.glob("process*.jsonl"):
            with path.open("a") as file:
                _lock(file, folder)
        try:
            before = json.loads((folder / SETTINGS).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            before = None
        if not keep or before != hashed:
            if isinstance(before, dict) and before != hashed:
                changed = sorted(k for k in hashed.keys() | before.keys() if hashed.get(k) != before.get(k))
                said = f"of other settings ({', '.join(changed)})"
            shutil.rmtree(folder)
    folder.mkdir(parents=True, exist_ok=True)
    with write_atomically(folder / SETTINGS) as temporary:
        temporary.write_text(json.dumps(hashed, indent=1) + "\n", encoding="utf-8")
    return said


def read(folder: Path) -> dict[Key, Entry]:
    """The finished images of all processes, each once."""
    entries: dict[Key, Entry] = {}
    for path in sorted(folder.glob("process*.jsonl")):
        for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
            try:
                entry = Entry(**json.loads(line))
            except (ValueError, TypeError):  # cut off
                continue
            entries.setdefault(entry.key, entry)
    return entries


class Journal:
    """The file of one process.

    Args:
        folder: of the journal, after :func:`prepare`.
        rank: the process's number.

    Raises:
        UserError: where another evaluation is writing there.
    """

    def __init__(self, folder: Path, rank: int) -> None:
        path = folder / f"process{rank}.jsonl"
        whole = not path.is_file() or path.stat().st_size == 0 or path.read_bytes().endswith(b"\n")
        self._file = path.open("a", encoding="utf-8")
        _lock(self._file, folder)
        if not whole:
            self._file.write("\n")

    def add(self, entry: Entry) -> None:
        """Write one finished image; it is on the disk when this returns."""
        import os

        self._file.write(json.dumps(vars(entry)) + "\n")
        self._file.flush()
        os.fsync(self._file.fileno())

    def close(self) -> None:
        """Let the file go."""
        self._file.close()


def digest(value: Any) -> str:
    """A short hash of a value, as JSON."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()[:16]


def _lock(file: TextIO, folder: Path) -> None:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        file.close()
        raise UserError(f"another evaluation is writing into {folder.parent}: wait for it, or give out=") from error

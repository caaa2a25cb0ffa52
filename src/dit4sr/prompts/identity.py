"""Which weights these are: hashes of files by content, each computed once."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path

from dit4sr.files import write_atomically

WEIGHTS = (".safetensors",)
OTHER_WEIGHTS = (".bin", ".pt", ".pth", ".ckpt", ".h5", ".msgpack", ".onnx", ".gguf")
"""Formats that are never read here, so that they say nothing about what is."""


def folder_digest(folders: Iterable[Path], memo: Path | None = None) -> str:
    """SHA-256 over the names and contents of the files in some folders (not of folders inside
    them; what the folders are called is left out).

    Args:
        folders: in order; a missing one counts as empty.
        memo: where to remember the hashes of weights, which take seconds a gigabyte: by path, size and time of
            change, so that a replaced file is hashed again. None remembers nothing.
    """
    total = hashlib.sha256()
    for number, folder in enumerate(folders):
        total.update(f"{number}\n".encode())
        for path in sorted(folder.iterdir()) if folder.is_dir() else ():
            if path.is_file() and not path.name.startswith(".") and path.suffix not in OTHER_WEIGHTS:
                total.update(f"{path.name} {_file_digest(path, memo)}\n".encode())
    return total.hexdigest()


def _file_digest(path: Path, memo: Path | None) -> str:
    if memo is None or path.suffix not in WEIGHTS:
        return _read_digest(path)
    stat = path.stat()
    state = [str(path.resolve()), stat.st_size, stat.st_mtime_ns]
    note = memo / f"{hashlib.sha256(json.dumps(state).encode()).hexdigest()}.json"
    try:
        return str(json.loads(note.read_text(encoding="utf-8"))["sha256"])
    except (OSError, ValueError, LookupError, TypeError):
        digest = _read_digest(path)
    with write_atomically(note) as temporary:
        temporary.write_text(json.dumps({"file": state, "sha256": digest}), encoding="utf-8")
    return digest


def _read_digest(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()

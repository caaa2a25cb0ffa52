"""The file that a checkpoint is: checked for damage, and read without unpickling.

It is the zip archive that ``torch.save`` writes. Each of its members carries a CRC-32, which torch does not look at
when it reads; here a truncated or bit-flipped file is found without a checksum file beside it. A checkpoint of sharded
training is a folder with checksums of its own (:mod:`dit4sr.sharded_files`).
"""

from __future__ import annotations

import pickle
import re
import zipfile
import zlib
from pathlib import Path
from typing import Any

BEGINNING = b"PK\x03\x04"
"""Of a zip archive, whatever its end looks like."""

INSTEAD = "give an earlier checkpoint (step-<n>.ckpt), or copy it here again"
"""Of a damaged one."""

MORE_THAN_TENSORS = "it holds more than tensors and plain values, which train.py never writes; it was not executed"
ESCAPES = re.compile(r"\x1b\[[0-9;]*m")


def damage(path: Path) -> str | None:
    """What is wrong with a file; None where every byte that counts is as it was written. They are streamed once."""
    try:
        with zipfile.ZipFile(path) as archive:
            bad = archive.testzip()
    except (zipfile.BadZipFile, zlib.error, EOFError, OSError, ValueError, NotImplementedError, RuntimeError) as error:
        return f"it is no whole file ({error})"
    return None if bad is None else f"its part {bad} is damaged"


def read_archive(path: Path, *, verified: bool = False) -> Any:
    """The tensors, on the CPU, and plain values that ``torch.save`` wrote; nothing else is built or executed.

    Args:
        path: of the file.
        verified: :func:`damage` has just found none, so the bytes need not be read twice.

    Raises:
        ValueError: the file is damaged or something else; the words complete "it cannot be read: …" in one line.
    """
    import torch  # late: looking for damage does not need it

    try:
        with path.open("rb") as file:
            beginning = file.read(len(BEGINNING))
        if beginning != BEGINNING:
            what = "it is no checkpoint of this framework" if beginning else "it is empty"
            raise ValueError(f"{what}: give one that train.py wrote (checkpoints/last.ckpt)")
        if not verified and (reason := damage(path)):
            raise ValueError(f"{reason}: {INSTEAD}")
        if _is_torchscript(path):
            raise ValueError(MORE_THAN_TENSORS)
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:  # torch's text advises to read it all the same
        raise ValueError(MORE_THAN_TENSORS) from error
    except (RuntimeError, EOFError, OSError, KeyError, IndexError, AttributeError, TypeError) as error:
        lines = ESCAPES.sub("", str(error)).splitlines()
        raise ValueError(lines[0] if lines else type(error).__name__) from error


def _is_torchscript(path: Path) -> bool:
    """Whether torch would take an archive for a program rather than for tensors."""
    with zipfile.ZipFile(path) as archive:
        return any(name.rpartition("/")[2] == "constants.pkl" for name in archive.namelist())

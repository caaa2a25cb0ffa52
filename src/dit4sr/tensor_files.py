"""Safetensors files: what is in them, read from their headers alone, and a hash of their content.

Format: eight bytes with the header's length, the header (JSON: name → dtype, shape, offsets), the tensors' bytes.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from dit4sr.errors import UserError

if TYPE_CHECKING:
    import torch

LONGEST_HEADER = 100_000_000
"""Bytes; the limit of the safetensors library."""

HASH_BLOCK = 1 << 22
HASH_THREADS = 8


@dataclass(frozen=True)
class StoredTensor:
    """Where a tensor is: ``dtype`` as the format names it (F32, BF16, …), ``start`` and ``end`` in the file."""

    file: Path
    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int


def read_header(file: Path) -> dict[str, StoredTensor]:
    """Name → place of every tensor of one file.

    Raises:
        UserError: for a file that is truncated, damaged, or in another format.
    """
    size = file.stat().st_size
    try:
        with file.open("rb") as opened:
            length = int.from_bytes(opened.read(8), "little")
            if not 2 <= length <= min(size - 8, LONGEST_HEADER):
                raise ValueError("its header is cut off")
            header = json.loads(opened.read(length))
        header.pop("__metadata__", None)
        first = 8 + length
        tensors = {
            str(name): StoredTensor(
                file,
                str(entry["dtype"]),
                tuple(int(side) for side in entry["shape"]),
                first + int(entry["data_offsets"][0]),
                first + int(entry["data_offsets"][1]),
            )
            for name, entry in header.items()
        }
        end = max((tensor.end for tensor in tensors.values()), default=first)
        if end != size:
            raise ValueError(f"it has {size:,} bytes where its header announces {end:,}")
    except (OSError, ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        raise UserError(
            f"{file} is damaged or incomplete ({str(error) or type(error).__name__}): download it again"
        ) from error
    return tensors


def read_headers(files: Iterable[Path]) -> dict[str, StoredTensor]:
    """Name → place of every tensor of a model's files (its shards).

    Raises:
        UserError: see :func:`read_header`; or where two files hold the same tensor.
    """
    tensors: dict[str, StoredTensor] = {}
    for file in files:
        header = read_header(file)
        if twice := sorted(set(header) & set(tensors)):
            raise UserError(f"{file} and {tensors[twice[0]].file.name} both hold {twice[0]}: download them again")
        tensors |= header
    return tensors


def content_hash(tensors: Mapping[str, StoredTensor]) -> str:
    """SHA-256 of names, dtypes, shapes and bytes, 64 hex digits; the same however the tensors are split into files.

    The files are read once, in blocks: nothing of them stays in memory.
    """

    def digest(name: str) -> bytes:
        tensor = tensors[name]
        hashed = hashlib.sha256(json.dumps([name, tensor.dtype, tensor.shape]).encode())
        with tensor.file.open("rb", buffering=0) as opened:
            os.lseek(opened.fileno(), tensor.start, os.SEEK_SET)
            block = bytearray(HASH_BLOCK)
            left = tensor.end - tensor.start
            while left:
                count = opened.readinto(memoryview(block)[: min(left, HASH_BLOCK)])
                if not count:
                    raise UserError(f"{tensor.file} ends within {name}: download it again")
                hashed.update(memoryview(block)[:count])
                left -= count
        return hashed.digest()

    whole = hashlib.sha256()
    with ThreadPoolExecutor(min(HASH_THREADS, os.cpu_count() or 1)) as pool:  # hashing releases the GIL
        for one in pool.map(digest, sorted(tensors)):
            whole.update(one)
    return whole.hexdigest()


def read_tensors(
    tensors: Mapping[str, StoredTensor], *, device: torch.device | str = "cpu", dtype: torch.dtype | None = None
) -> dict[str, torch.Tensor]:
    """The tensors themselves, memory-mapped: in RAM there is no copy beside the file's own pages.

    Args:
        tensors: those wanted.
        device: where they go, one by one.
        dtype: of floating-point tensors; None leaves them as they are (on the CPU: the file's pages, privately
            mapped, so that writing to a tensor leaves the file alone).

    Raises:
        UserError: for a file that cannot be read.
    """
    from safetensors import SafetensorError, safe_open

    by_file: dict[Path, list[str]] = {}
    for name, tensor in tensors.items():
        by_file.setdefault(tensor.file, []).append(name)
    read: dict[str, torch.Tensor] = {}
    for file, names in by_file.items():
        try:
            with safe_open(file, framework="pt", device=str(device)) as opened:
                for name in names:
                    value = opened.get_tensor(name)
                    read[name] = value.to(dtype) if dtype is not None and value.is_floating_point() else value
        except (SafetensorError, OSError) as error:
            raise UserError(f"{file} cannot be read ({error}): download it again") from error
    return read

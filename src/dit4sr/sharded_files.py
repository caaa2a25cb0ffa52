"""A checkpoint that several processes write together: a folder with one file of tensors from each.

Format of the folder:
- ``shard-<rank>-of-<ranks>.safetensors``: what a process holds of each tensor that is split. The split is along the
  first dimension in the order of the ranks, so that the whole is the pieces one below the other.
- ``plain.ckpt``: everything else, as ``torch.save`` writes it, read by torch's weights-only loading. In place of a
  split tensor it has ``{"__split__": name}``.
- ``index.json``: the number of ranks, shape and type of each split tensor, and the SHA-256 of every file. It is
  written last, and has a checksum of its own.

torch.distributed.checkpoint is not used: the format that keeps an optimiser's state (``.metadata``) is a pickle, and
reading it would execute what the file says; its safetensors format keeps tensors alone.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dit4sr.checkpoint_archive import read_archive
from dit4sr.errors import UserError

INDEX, PLAIN = "index.json", "plain.ckpt"
MARK = "__split__"
VERSION = 1
MOST_RANKS = 100_000
DTYPES = {str(t).removeprefix("torch."): t for t in (torch.float64, torch.float32, torch.bfloat16, torch.float16)}


def shard_file(rank: int, ranks: int) -> str:
    """The name of a process's file."""
    return f"shard-{rank:05d}-of-{ranks:05d}.safetensors"


def rows_of(rank: int, ranks: int, rows: int) -> tuple[int, int]:
    """First row and number of rows that a rank has of a tensor that is split as ``torch.chunk`` does."""
    each = -(-rows // ranks)
    start = min(rank * each, rows)
    return start, min(each, rows - start)


def take_out(value: Any, split: Callable[[Tensor], bool], name: str = "") -> tuple[Any, dict[str, Tensor]]:
    """Replace every tensor for which ``split`` holds by its mark.

    Args:
        value: mappings, lists and tuples of tensors and plain values.
        split: tells of a tensor whether it is taken out.
        name: where ``value`` is.

    Returns:
        The rest, and the tensors by name: the keys that lead to them, joined by ``/``.
    """
    if isinstance(value, Tensor) and split(value):
        return {MARK: name}, {name: value}
    if isinstance(value, Mapping):
        pairs = {key: take_out(inner, split, f"{name}/{key}" if name else str(key)) for key, inner in value.items()}
        rest: Any = {key: plain for key, (plain, _) in pairs.items()}
        found = [tensors for _, tensors in pairs.values()]
    elif isinstance(value, list | tuple):
        parts = [take_out(inner, split, f"{name}/{n}" if name else str(n)) for n, inner in enumerate(value)]
        rest = type(value)([plain for plain, _ in parts]) if type(value) in (list, tuple) else value
        found = [tensors for _, tensors in parts]
    else:
        return value, {}
    return rest, {n: tensor for tensors in found for n, tensor in tensors.items()}


def put_back(value: Any, tensor: Callable[[str], Any]) -> Any:
    """The inverse of :func:`take_out`: ``tensor`` gives what stands for a name."""
    if isinstance(value, Mapping):
        if set(value) == {MARK}:
            return tensor(str(value[MARK]))
        return {key: put_back(inner, tensor) for key, inner in value.items()}
    if type(value) in (list, tuple):
        return type(value)(put_back(inner, tensor) for inner in value)
    return value


def write_shard(folder: Path, rank: int, ranks: int, tensors: Mapping[str, Tensor]) -> str:
    """Write what this process holds, by name; returns the file's SHA-256."""
    from safetensors.torch import save_file

    path = folder / shard_file(rank, ranks)
    save_file({name: value.detach().cpu().contiguous() for name, value in tensors.items()}, path)
    return sha256(path)


def write_index(
    folder: Path, plain: Any, split: Mapping[str, tuple[torch.dtype, tuple[int, ...]]], shards: list[str]
) -> None:
    """Write what makes the files a checkpoint; by one process, when all have written theirs.

    Args:
        folder: of the files.
        plain: what is not split, with marks.
        split: type and whole shape of each split tensor.
        shards: SHA-256 of the processes' files, by rank.
    """
    torch.save(plain, folder / PLAIN)
    files = {shard_file(rank, len(shards)): digest for rank, digest in enumerate(shards)}
    content = {
        "version": VERSION,
        "ranks": len(shards),
        "tensors": {name: [str(dtype).removeprefix("torch."), list(shape)] for name, (dtype, shape) in split.items()},
        "files": {**files, PLAIN: sha256(folder / PLAIN)},
    }
    (folder / INDEX).write_text(json.dumps({"content": content, "sha256": digest_of(content)}), encoding="utf-8")


def sha256(path: Path) -> str:
    """Of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def digest_of(content: Any) -> str:
    """SHA-256 of plain values, whatever the order of their keys."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True)
class ShardedFiles:
    """A folder's index, checked for what it claims but not for what the files hold (see :func:`damage`).

    Attributes:
        folder: of the files.
        ranks: that wrote them.
        tensors: name → type and whole shape.
        files: name → SHA-256.
    """

    folder: Path
    ranks: int
    tensors: dict[str, tuple[torch.dtype, tuple[int, ...]]]
    files: dict[str, str]

    def plain(self) -> Any:
        """What is not split, with marks in place of what is.

        Raises:
            ValueError: it is damaged, or holds more than tensors and plain values.
        """
        try:
            return read_archive(self.folder / PLAIN, verified=True)  # by its SHA-256, see :func:`damage`
        except ValueError as error:
            raise ValueError(f"{PLAIN}: {error}") from error

    def rows(self, name: str, start: int = 0, count: int | None = None) -> Tensor:
        """Rows of a split tensor, whoever wrote them; the whole tensor by default.

        Raises:
            ValueError: the files do not hold it.
        """
        if name not in self.tensors:
            raise ValueError(f"{INDEX} knows no {name!r}")
        dtype, shape = self.tensors[name]
        end = shape[0] if count is None else start + count
        pieces = [self._piece(name, rank, start, end) for rank in range(self.ranks)]
        found = [piece for piece in pieces if piece is not None]
        whole = torch.cat(found) if found else torch.empty(0, *shape[1:], dtype=dtype)
        if whole.dtype != dtype or tuple(whole.shape) != (end - start, *shape[1:]):
            raise ValueError(f"its shards hold {name} as {whole.dtype} {tuple(whole.shape)}")
        return whole

    def _piece(self, name: str, rank: int, start: int, end: int) -> Tensor | None:
        """The rows of rank ``rank`` among ``start`` … ``end``."""
        from safetensors import SafetensorError, safe_open

        first, count = rows_of(rank, self.ranks, self.tensors[name][1][0])
        low, high = max(start, first), min(end, first + count)
        if low >= high:
            return None
        file = self.folder / shard_file(rank, self.ranks)
        try:
            with safe_open(file, framework="pt") as opened:
                piece: Tensor = opened.get_slice(name)[low - first : high - first]
                return piece
        except (SafetensorError, OSError, IndexError) as error:
            raise ValueError(f"{file.name} cannot be read ({error})") from error


def open_sharded(folder: Path) -> ShardedFiles:
    """Read a folder's index.

    Raises:
        ValueError: there is none, or it is no index of this format.
    """
    try:
        read = json.loads((folder / INDEX).read_text(encoding="utf-8"))
        content = read["content"]
        if read["sha256"] != digest_of(content):
            raise ValueError("its checksum is another")
        if content["version"] != VERSION:
            raise ValueError(f"it is of version {content['version']}")
        ranks = content["ranks"]
        if not isinstance(ranks, int) or not 1 <= ranks <= MOST_RANKS:
            raise ValueError(f"it has {ranks} ranks")
        tensors = {str(n): (DTYPES[d], tuple(int(s) for s in shape)) for n, (d, shape) in content["tensors"].items()}
        if not all(shape and min(shape) >= 0 for _, shape in tensors.values()):
            raise ValueError("a tensor of it has no shape that can be split")
        files = {str(name): str(digest) for name, digest in content["files"].items()}
        # The names are ours, never the file's: a name that climbs out of the folder leads nowhere.
        if set(files) != {PLAIN, *(shard_file(rank, ranks) for rank in range(ranks))}:
            raise ValueError("it does not list the files that it should")
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"{INDEX}: {str(error) or type(error).__name__}") from error
    return ShardedFiles(folder, ranks, tensors, files)


def damage(folder: Path) -> str | None:
    """What is wrong with a folder; None where every byte is as it was written. Each file is read once."""
    try:
        opened = open_sharded(folder)
        for name, digest in opened.files.items():
            if sha256(folder / name) != digest:
                return f"its file {name} is damaged"
    except (OSError, ValueError) as error:
        return f"it is not whole ({error})"
    return None


def read_sharded(folder: Path, parts: Collection[str] | None = None) -> dict[str, Any]:
    """A checkpoint as a single process would have written it.

    Args:
        folder: of the files.
        parts: of the checkpoint (``ema``, ``state_dict``, …) whose split tensors are wanted; None reads all.

    Raises:
        UserError: it is damaged, or none of ours.
    """
    try:
        opened = open_sharded(folder)
        plain = opened.plain()
        if not isinstance(plain, dict):
            raise ValueError(f"{PLAIN} holds no checkpoint")
        unwanted = {part for part in plain if parts is not None and part not in parts and holds_mark(plain[part])}
        return {part: None if part in unwanted else put_back(plain[part], opened.rows) for part in plain}
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{folder} cannot be read as a checkpoint: {error}") from error


def holds_mark(value: Any) -> bool:
    """Whether something in ``value`` stands for a split tensor."""
    found: list[str] = []
    put_back(value, found.append)
    return bool(found)

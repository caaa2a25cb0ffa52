"""Writing checkpoints whole or not at all, and reading them without unpickling."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins import CheckpointIO
from torch.utils._pytree import tree_map_only

from dit4sr.errors import UserError
from dit4sr.files import flush, unfinished, write_atomically
from dit4sr.sharded_files import read_sharded
from dit4sr.training.checkpoint_files import newest_valid, put_in_place, remove, step_files


def write_checkpoint(checkpoint: Mapping[str, Any], path: Path, *, alias: Path | None = None, keep: int = 0) -> None:
    """Write a checkpoint, flushed to the disk before it takes its name.

    Args:
        checkpoint: tensors and plain values.
        path: of the file.
        alias: a second name (a hard link where the file system has them), such as ``last.ckpt``.
        keep: how many step files to keep in the folder, this one among them; 0 keeps all.

    Raises:
        UserError: it cannot be written; what was there before is untouched.
    """
    try:
        with unfinished(path) as partial:
            with partial.open("wb") as file:
                torch.save(checkpoint, file)
            flush(partial)
            put_in_place(partial, path)  # which a sharded run, gone on with by a single process, may have made a folder
        if alias is not None:
            with write_atomically(alias) as temporary:
                try:
                    os.link(path, temporary)
                except OSError:  # a file system without hard links
                    shutil.copyfile(path, temporary)
    except (OSError, RuntimeError) as error:  # torch's writer turns a full disk into a RuntimeError
        raise cannot_be_written(path, getattr(error, "strerror", None) or str(error).splitlines()[0]) from error
    if keep:
        for old in step_files(path.parent)[keep:]:
            remove(old)


def cannot_be_written(path: Path, reason: str) -> UserError:
    """What to say where a checkpoint could not be written, for the given reason."""
    before = newest_valid(path.parent, warn=lambda line: None)
    kept = f"the newest one there, {before.name}, is whole" if before else "there is none before it"
    return UserError(
        f"the checkpoint {path} could not be written ({reason}); {kept}. Free some disk space and start the "
        "same command again: it goes on from there"
    )


class AtomicCheckpointIO(CheckpointIO):
    """How Lightning writes and reads checkpoints: atomically, durably and without unpickling.

    Args:
        background: write in a thread while training goes on; the state is copied to the CPU first. An error shows
            at the next checkpoint or at the end.
    """

    def __init__(self, *, background: bool = False) -> None:
        self._executor = ThreadPoolExecutor(1, "checkpoint") if background else None
        self._pending: Future[None] | None = None

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None) -> None:
        options = storage_options or {}
        if self._executor is None:
            write_checkpoint(checkpoint, Path(path), **options)
            return
        self.wait()
        copied = tree_map_only(torch.Tensor, lambda t: t.detach().to("cpu", copy=True), checkpoint)
        self._pending = self._executor.submit(write_checkpoint, copied, Path(path), **options)

    def load_checkpoint(self, path: Any, map_location: Any | None = None, weights_only: bool | None = None) -> Any:
        if Path(path).is_dir():  # of sharded training, gone on with by one process or DDP
            return read_sharded(Path(path))
        return torch.load(path, map_location=map_location or "cpu", weights_only=True)

    def remove_checkpoint(self, path: Any) -> None:
        remove(Path(path))

    def wait(self) -> None:
        """Until what is being written is on the disk.

        Raises:
            UserError: it could not be written.
        """
        if self._pending is not None:
            pending, self._pending = self._pending, None
            pending.result()

    def teardown(self) -> None:
        self.wait()
        if self._executor is not None:
            self._executor.shutdown()

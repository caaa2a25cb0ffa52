"""The files of a run's ``checkpoints`` folder, and which of them can be trusted.

A checkpoint is a zip archive in which damage is found (:mod:`dit4sr.checkpoint_archive`). One of fully sharded training
is a folder (:mod:`dit4sr.sharded_files`), and ``last.ckpt`` and ``best.ckpt`` are then symbolic links.
"""

from __future__ import annotations

import os
import re
import shutil
import uuid
from collections.abc import Callable, Iterable
from pathlib import Path

from dit4sr.checkpoint_damage import damage
from dit4sr.files import flush, write_atomically

LAST, BEST = "last.ckpt", "best.ckpt"
UNNAMED_BEST = re.compile(r"\.?best-[0-9a-f]{12}(\.[0-9a-f]{12})?\.ckpt")
"""Folders that best.ckpt is, was or was to be a link to."""
STEP_FILE = re.compile(r"step-(\d+)(\.replaced)?\.ckpt")
REPLACED = ".replaced"
"""Part of the name of a checkpoint while another of the same step takes its place."""


def step_file(folder: Path, step: int) -> Path:
    """Where the checkpoint of a step lies."""
    return folder / f"step-{step:09d}.ckpt"


def step_files(folder: Path) -> list[Path]:
    """The checkpoints of steps, the newest first; one that another has replaced, if it is still there, behind that."""
    found = [
        (int(match[1]), match[2] is None, path)
        for path in folder.glob("step-*.ckpt")
        if (match := STEP_FILE.fullmatch(path.name))
    ]
    return [path for *_, path in sorted(found, reverse=True)]


def newest_valid(folder: Path, warn: Callable[[str], None] = print) -> Path | None:
    """The newest checkpoint of a run's ``checkpoints`` folder that is whole; None where there is none.

    Args:
        folder: the run's ``checkpoints``.
        warn: called with a line for each damaged checkpoint that was passed over.
    """
    last = folder / LAST
    candidates = step_files(folder)
    if last.is_file() and not any(last.samefile(path) for path in candidates):
        candidates.insert(0, last)
    for path in candidates:
        reason = damage(path)
        if reason is None:
            return path
        warn(f"warning: {path} is passed over: {reason}")
    return None


def remove_partial(folder: Path, names: Iterable[str] = ("step-*.ckpt", "last.ckpt", "best.ckpt")) -> None:
    """Remove what a killed process left half written (``.<name>.<random>.ckpt``); it was visible to nobody."""
    for name in names:
        stem = name.removesuffix(".ckpt")
        for partial in folder.glob(f".{stem}.*.ckpt"):
            remove(partial)
    for unnamed in folder.glob("*best-*.ckpt"):
        # A user's own copies, whatever their names, are not ours to remove.
        if not (unnamed.is_dir() and UNNAMED_BEST.fullmatch(unnamed.name)):
            continue
        if not ((folder / BEST).exists() and unnamed.samefile(folder / BEST)):
            remove(unnamed)


def remove(path: Path) -> None:
    """Remove a checkpoint, if it is there; a folder loses its name first, so that no half of one is ever seen."""
    if not path.is_dir() or path.is_symlink():
        path.unlink(missing_ok=True)
        return
    hidden = path.with_name(f".{path.stem.lstrip('.').split('.')[0]}.{uuid.uuid4().hex[:12]}.ckpt")
    path.rename(hidden)
    shutil.rmtree(hidden, ignore_errors=True)


def put_in_place(whole: Path, path: Path) -> None:
    """Rename a checkpoint that is on the disk; what has the name, file or folder, is removed after that.

    A folder cannot be replaced in one operation. It stays under a name by which it is found, so that a process that is
    killed at any moment leaves one of the two.
    """
    old = path.with_name(f"{path.stem}{REPLACED}{path.suffix}")
    if path.exists() and (path.is_dir() or whole.is_dir()) and not path.is_symlink():
        remove(old)
        path.rename(old)
    os.replace(whole, path)
    flush(path.parent)
    remove(old)


def publish(partial: Path, path: Path, *, alias: Path | None = None, keep: int = 0) -> None:
    """Give a folder that is whole and on the disk its name.

    Args:
        partial: the folder, beside ``path``.
        path: its name. ``best.ckpt`` is replaced at once, as a file would be: it is a link to the folder.
        alias: a second name, such as ``last.ckpt``, made a link too.
        keep: see :func:`dit4sr.training.checkpoint_io.write_checkpoint`.
    """
    named = path.with_name(f"best-{uuid.uuid4().hex[:12]}.ckpt") if path.name == BEST else path
    put_in_place(partial, named)
    for link in (alias, path if named != path else None):
        if link is not None:
            with write_atomically(link) as temporary:
                os.symlink(named.name, temporary)
    flush(path.parent)
    if named != path:
        remove_partial(path.parent, names=())
    if keep:
        for old in step_files(path.parent)[keep:]:
            remove(old)

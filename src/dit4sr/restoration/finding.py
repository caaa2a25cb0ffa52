"""From what the user calls the input to a list of photos, and where each one's result goes."""

from __future__ import annotations

import glob
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from dit4sr.errors import UserError
from dit4sr.restoration.reading import SUFFIXES, UNREAD_SUFFIXES
from dit4sr.restoration.results import made_with


@dataclass(frozen=True)
class Job:
    """One photo to restore.

    Attributes:
        photo: its file.
        name: its path relative to the input folder, with forward slashes; chooses the noise.
        result: the file to write.
    """

    photo: Path
    name: str
    result: Path

    @property
    def shown(self) -> str:
        """The name as it can be printed: bytes of it that are no UTF-8 are escaped."""
        return self.name.encode("utf-8", "backslashreplace").decode("utf-8")


@dataclass(frozen=True)
class Found:
    """What was found.

    Attributes:
        jobs: sorted by name.
        unread: suffix → number of files that are photos too, but of formats that are not read.
    """

    jobs: tuple[Job, ...]
    unread: dict[str, int]


def find_jobs(source: str, output: Path, *, recursive: bool) -> Found:
    """List the photos of a file, a folder or a glob.

    Hidden files, what lies in the output folder, and earlier results of ours among the photos are left out.
    Links to files and folders are followed.

    Args:
        source: a path or a glob. The folder that relative paths start from is the folder itself, a file's
            parent, or the part of the glob before its first wildcard.
        output: results go to <output>/<relative folder>/<stem>.png.
        recursive: whether to look into a folder's folders.

    Raises:
        UserError: nothing is there, two photos would give one result, or a result would replace a photo.
    """
    path = Path(source).expanduser()
    if path.is_dir():
        root, files = path, sorted(_files_in(path, recursive))
    elif path.is_file():
        root, files = path.parent, [path]
    elif glob.has_magic(source):
        root, pattern = _split(path)
        files = sorted(root / match for match in glob.glob(pattern, root_dir=root, recursive=recursive))
    elif path.is_symlink():
        raise UserError(f"input={source} is a link to what is not there: give the photo itself")
    else:
        raise UserError(f"input={source}: there is no such file or folder")
    inside, single = output.resolve(), path.is_file()
    jobs, unread = [], Counter[str]()
    for photo in files:
        relative, suffix = photo.relative_to(root), photo.suffix.lower()
        if not single:
            hidden = any(part.startswith(".") for part in relative.parts)
            below_output = resolved(photo).is_relative_to(inside) and inside != root.resolve()
            # A folder, a named pipe or a device is no photo; a link that leads nowhere is told of when it is read.
            if hidden or below_output or (photo.exists() and not photo.is_file()):
                continue
            if suffix in UNREAD_SUFFIXES:
                unread[suffix] += 1
            if suffix not in SUFFIXES:
                continue
            if inside == root.resolve() and made_with(photo) is not None:
                continue  # an earlier result, where results are written among the photos
        jobs.append(Job(photo, relative.as_posix(), output / relative.with_suffix(".png")))
    if not jobs:
        raise UserError(f"input={source} holds no photo ({', '.join(SUFFIXES)})")
    _check_results(jobs)
    return Found(tuple(sorted(jobs, key=lambda job: job.name)), dict(unread))


def _files_in(folder: Path, recursive: bool, above: frozenset[Path] = frozenset()) -> Iterator[Path]:
    """The files of a folder; a link that leads back to a folder above it is not followed."""
    itself = folder.resolve()
    if itself in above:
        return
    try:
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    except PermissionError as error:
        raise UserError(f"{folder} cannot be listed (permission denied): make it readable, or move it away") from error
    for entry in entries:
        if os.path.isdir(entry):  # entry.is_dir() raises for a link to itself
            if recursive and not entry.name.startswith("."):
                yield from _files_in(folder / entry.name, recursive, above | {itself})
        else:
            yield folder / entry.name


def resolved(path: Path) -> Path:
    """Where a path leads; a link to itself, for which Path.resolve() raises, stays what it is."""
    return Path(os.path.realpath(path))


def _split(pattern: Path) -> tuple[Path, str]:
    """The folders of a glob before its first wildcard, and the rest; a folder that is there is no wildcard."""
    parts = list(pattern.parts)
    fixed = Path(parts.pop(0)) if pattern.is_absolute() else Path()
    while len(parts) > 1 and (not glob.has_magic(parts[0]) or (fixed / parts[0]).is_dir()):
        fixed /= parts.pop(0)
    return fixed, os.path.join(*parts)


def _check_results(jobs: Sequence[Job]) -> None:
    photos = {resolved(job.photo) for job in jobs}
    by_result: dict[Path, Job] = {}
    for job in jobs:
        if job.result in by_result:
            raise UserError(
                f"{by_result[job.result].shown} and {job.shown} would both be restored to {job.result.name}: "
                "rename one of them, or restore them into two folders"
            )
        if resolved(job.result) in photos:
            raise UserError(
                f"restoring {job.shown} would replace the photo {job.result.name}: give another output=<folder>"
            )
        by_result[job.result] = job

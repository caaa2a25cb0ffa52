"""From what the user calls the input to a list of photos, and where each one's result goes."""

from __future__ import annotations

import glob
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from dit4sr.errors import UserError
from dit4sr.restoration.reading import SUFFIXES


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
    def caption_file(self) -> Path:
        """Where its caption is, if it has one: <stem>.txt beside it."""
        return self.photo.with_suffix(".txt")


def find_jobs(source: str, output: Path, *, recursive: bool) -> list[Job]:
    """List the photos of a file, a folder or a glob, sorted by relative path.

    Hidden files, and what lies in the output folder, are left out.

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
        root = path
        found = [p for p in path.glob("**/*" if recursive else "*") if p.suffix.lower() in SUFFIXES]
    elif path.is_file():
        root, found = path.parent, [path]
    elif glob.has_magic(source):
        root = _fixed_part(path)
        matches = (Path(p) for p in glob.glob(str(path), recursive=recursive))
        found = [p for p in matches if p.suffix.lower() in SUFFIXES]
    else:
        raise UserError(f"input={source}: there is no such file or folder")
    inside = output.resolve()
    jobs = []
    for photo in found:
        relative = photo.relative_to(root)
        hidden = any(part.startswith(".") for part in relative.parts)
        is_result = photo.resolve().is_relative_to(inside) and inside != root.resolve() and not path.is_file()
        if not hidden and not is_result and photo.is_file():
            jobs.append(Job(photo, relative.as_posix(), output / relative.with_suffix(".png")))
    if not jobs:
        raise UserError(f"input={source} holds no photo ({', '.join(SUFFIXES)})")
    _check_results(jobs)
    return sorted(jobs, key=lambda job: job.name)


def _fixed_part(pattern: Path) -> Path:
    """The folders of a glob before its first wildcard."""
    fixed: list[str] = []
    for part in pattern.parts[:-1]:
        if glob.has_magic(part):
            break
        fixed.append(part)
    return Path(*fixed)


def _check_results(jobs: Sequence[Job]) -> None:
    photos = {job.photo.resolve() for job in jobs}
    by_result: dict[Path, Job] = {}
    for job in jobs:
        if job.result in by_result:
            raise UserError(
                f"{by_result[job.result].name} and {job.name} would both be restored to {job.result}: "
                "rename one of them"
            )
        if job.result.resolve() in photos:
            raise UserError(f"restoring {job.name} would replace the photo {job.result}: give another output=<folder>")
        by_result[job.result] = job

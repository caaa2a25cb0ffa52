"""Photos in folders: PNG, JPEG and WebP files with ``<stem>.txt`` captions beside them."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from dit4sr.data.images import SUFFIXES, UnreadableImage, decode_image
from dit4sr.data.photos import Photo
from dit4sr.data.preparation.sources import Locator, Skipped, digest, readable, scene_of
from dit4sr.errors import UserError


class FileSource:
    """Folders, gone through at any depth, and single files; names are relative to what they have in common.

    Hidden files and folders are left out; links are followed, except back to a folder that they lie in.
    """

    unit = "photo"
    licence = "unknown: the folder's own"
    photos_per_unit: int | None = None

    def __init__(self, paths: Sequence[Path], setting: str) -> None:
        self._paths = list(paths)
        folders = [str(path if path.is_dir() else path.parent) for path in paths]
        self._base = os.path.commonpath(folders)
        self.version = "files"
        if first_photo(self._paths) is None:
            raise UserError(f"source={setting} holds no image ({', '.join(SUFFIXES)}): pass a folder of photos.")

    def locators(self) -> Iterator[Locator]:
        """Yield [path relative to the base, bytes], in the order of the folders' sorted entries."""
        for path, size in _walk_all(self._paths):
            yield [os.path.relpath(path, self._base).replace(os.sep, "/"), size]

    def read(self, locator: Locator, number: int) -> Iterator[tuple[int, Photo | Skipped]]:
        """Yield the photo; its caption is the text of ``<stem>.txt`` beside it, else ""."""
        path = os.path.join(self._base, locator[0])
        name = readable(locator[0])
        text = os.path.splitext(path)[0] + ".txt"
        try:
            caption = ""
            if os.path.isfile(text):
                with open(text, encoding="utf-8-sig", errors="replace") as file:
                    caption = file.read().strip()
            if os.path.exists(path) and not os.path.isfile(path):
                raise UnreadableImage("not a regular file")  # to open a pipe would wait for ever
            with open(path, "rb") as opened:
                data = opened.read()
            image = decode_image(data)
        except UnreadableImage as error:
            yield number, Skipped(name, "undecodable", str(error))
        except OSError as error:
            yield number, Skipped(name, "undecodable", f"cannot be read ({error.strerror})")
        else:
            yield number, Photo(name, scene_of(name), image, caption, held_out=False, file_digest=digest(data))

    def holds(self, folder: Path) -> bool:
        """See `Source`."""
        return any(path.is_dir() and folder.resolve().is_relative_to(path.resolve()) for path in self._paths)


def first_photo(paths: Sequence[Path]) -> str | None:
    """The first photo there is, or None."""
    return next((path for path, _ in _walk_all(paths)), None)


def _walk_all(paths: Sequence[Path]) -> Iterator[tuple[str, int]]:
    for path in paths:
        if path.is_dir():
            yield from _walk(str(path), ())
        else:
            yield str(path), path.stat().st_size


def _walk(folder: str, above: tuple[tuple[int, int], ...]) -> Iterator[tuple[str, int]]:
    """Yield (path, bytes) of the photos below a folder; only one folder's names are in memory at a time."""
    try:
        here = os.stat(folder)
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    except OSError as error:
        raise UserError(f"source: {folder} cannot be read ({error.strerror}).") from error
    identity = (here.st_dev, here.st_ino)
    if identity in above:
        return
    for entry in entries:
        if entry.name.startswith("."):
            continue
        if os.path.isdir(entry):  # entry.is_dir() raises for a link to itself
            yield from _walk(entry.path, (*above, identity))
        elif entry.name.lower().endswith(SUFFIXES):
            try:
                yield entry.path, entry.stat().st_size
            except OSError:  # a link to nothing: reading it will say so
                yield entry.path, -1

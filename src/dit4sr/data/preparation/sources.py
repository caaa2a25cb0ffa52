"""What a source of photos is, and which kind a setting names."""

from __future__ import annotations

import glob
import hashlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from dit4sr.data.images import SUFFIXES
from dit4sr.data.photos import Photo, embedded_photos
from dit4sr.data.preparation.settings import EMBEDDED, HUB, PrepareSettings
from dit4sr.data.shards import MANIFEST, find_shards
from dit4sr.errors import UserError

Locator = list[Any]
"""Where a photo is, as JSON has it; the source that made it reads it again in any process."""

CORRUPT = ("undecodable", "unreadable shard")
"""Reasons that speak of a broken file, not of a photo that is merely of no use."""


@dataclass(frozen=True)
class Skipped:
    """A photo that gives nothing: ``reason`` is short, for counting; ``detail`` says it whole."""

    name: str
    reason: str
    detail: str

    @property
    def corrupt(self) -> bool:
        """Whether the file is broken."""
        return self.reason in CORRUPT


class Source(Protocol):
    """Photos in a fixed order, each found again by its locator."""

    licence: str
    """Licence field of the manifest."""
    version: str
    """What the locators do not say about which photos these are."""
    photos_per_unit: int | None
    """Locators in a unit of work, where the source must decide it."""
    unit: str
    """What one locator stands for, for the progress."""

    def locators(self) -> Iterator[Locator]:
        """Yield the locators in order, without decoding a photo."""
        ...

    def read(self, locator: Locator, number: int) -> Iterator[tuple[int, Photo | Skipped]]:
        """Yield what is found at the ``number``-th locator: photos, or why there is none, each with its number."""
        ...

    def holds(self, folder: Path) -> bool:
        """Whether photos that were written to a folder would become part of the source."""
        ...


class EmbeddedSource:
    """The photographs that ship inside dependencies; one unit of work, so that their shards are full."""

    licence = "see sources"
    version = EMBEDDED
    unit = "photo"

    def __init__(self) -> None:
        self._photos = embedded_photos()
        self.photos_per_unit: int | None = len(self._photos)

    def locators(self) -> Iterator[Locator]:
        """See `Source`."""
        return ([photo.name] for photo in self._photos)

    def read(self, locator: Locator, number: int) -> Iterator[tuple[int, Photo | Skipped]]:
        """See `Source`."""
        yield number, self._photos[number]

    def holds(self, folder: Path) -> bool:
        """See `Source`."""
        return False


def open_source(settings: PrepareSettings) -> Source:
    """Open the source that the settings name; nothing is decoded yet.

    Raises:
        UserError: there is nothing of the kind, or not a photo in it.
    """
    if settings.source == EMBEDDED:
        return EmbeddedSource()
    if settings.source.startswith(HUB):
        from dit4sr.data.preparation.hub import HubSource

        assert settings.hf is not None
        return HubSource(settings.source.removeprefix(HUB), settings.hf)
    from dit4sr.data.preparation.files import FileSource, first_photo
    from dit4sr.data.preparation.tars import TarSource

    paths = [Path(path) for path in _paths(settings.source)]
    shards = [path for path in paths if path.suffix == ".tar" and path.is_file()]
    if shards and len(shards) < len(paths):
        raise UserError(f"source={settings.source} names both shards and photos: prepare them one after the other.")
    if shards:
        return TarSource(shards)
    wrong = [path for path in paths if path.is_file() and path.suffix.lower() not in SUFFIXES]
    if wrong:
        raise UserError(f"source={wrong[0]} is no photo ({', '.join(SUFFIXES)}) and no shard (.tar).")
    if len(paths) == 1 and paths[0].is_dir():
        folder = paths[0]
        if (folder / "train" / MANIFEST).is_file():  # prepared before: its benchmark is no source of photos
            return TarSource(find_shards(folder), folder)
        if first_photo(paths) is None and (inside := _shards_below(folder)):
            return TarSource(inside, folder)
        if any(folder.glob("*.tar")):
            print(
                f"source={folder} holds photos and shards: the photos are taken (source='{folder}/*.tar': the shards)"
            )
    return FileSource(paths, settings.source)


def _shards_below(folder: Path) -> list[Path]:
    inside = (path for path in folder.rglob("*.tar") if path.is_file())
    return [path for path in inside if not any(part.startswith(".") for part in path.relative_to(folder).parts)]


def _paths(source: str) -> list[str]:
    """The paths of a folder, file, glob or braces, sorted, each once."""
    if os.path.exists(source):
        return [source]
    if not any(sign in source for sign in "*?[{"):
        raise UserError(f"source={source} is not a folder or file: pass a folder of photos, or source=embedded.")
    from braceexpand import braceexpand

    try:
        patterns = list(braceexpand(source))
    except ValueError as error:
        raise UserError(f"source={source}: its braces do not match; write {{000..999}} or {{a,b}}.") from error
    found = {path for pattern in patterns for path in glob.iglob(pattern, recursive=True)}
    found = {path for path in found if os.path.isdir(path) or path.lower().endswith((*SUFFIXES, ".tar"))}
    if not found:
        raise UserError(f"source={source} matches no folder, photo ({', '.join(SUFFIXES)}) or shard (.tar).")
    # A ** matches folders and also what is in them, and follows links round and round.
    once = {os.path.realpath(path): path for path in sorted(found, reverse=True)}
    folders = {path.rstrip("/") for path in once.values() if os.path.isdir(path)}
    return sorted(path for path in once.values() if not any(str(parent) in folders for parent in Path(path).parents))


def scene_of(name: str) -> str:
    """A file's scene: nothing is known about which photos show the same thing, except those of one name."""
    return os.path.splitext(name)[0]


def readable(name: str) -> str:
    """A file name as text, also where the file system's bytes are none."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")


def digest(data: bytes) -> str:
    """Content hash, 32 hex digits."""
    return hashlib.blake2b(data, digest_size=16).hexdigest()

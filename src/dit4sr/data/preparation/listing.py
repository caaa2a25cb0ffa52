"""A source's photos in order, cut into units of work that are the same however many processes share them."""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice

from dit4sr.data.preparation.settings import PrepareSettings
from dit4sr.data.preparation.sources import Locator, Source


@dataclass(frozen=True)
class Unit:
    """Photos that one process turns into shards of their own.

    ``number`` counts units and ``first`` photos from 0; ``fingerprint`` is a hash of the settings and of which
    photos these are, so that finished work is recognised.
    """

    number: int
    first: int
    locators: list[Locator]
    fingerprint: str


class Listing:
    """Where all photos of a source are, gone through once and kept in a file without a name, not in memory.

    Attributes:
        photos: how many, or how many files of photos.
        units: units of work.
        unit_size: photos in each but the last.
        fingerprint: changes with their names and sizes.
        noun: what is counted, for the progress.
    """

    def __init__(self, source: Source, settings: PrepareSettings) -> None:
        self.unit_size = source.photos_per_unit or settings.photos_per_unit
        self.noun = source.unit
        self._work = settings.fingerprint()
        self._version = source.version
        self._file = tempfile.TemporaryFile("w+", encoding="utf-8")  # noqa: SIM115 - open as long as the listing
        digest = hashlib.sha256(source.version.encode("utf-8", "backslashreplace"))
        self.photos = 0
        for locator in source.locators():
            line = json.dumps(locator) + "\n"
            digest.update(line.encode())
            self._file.write(line)
            self.photos += 1
        self.units = -(-self.photos // self.unit_size)
        self.fingerprint = digest.hexdigest()

    def __iter__(self) -> Iterator[Unit]:
        """Yield the units in order; only one is in memory at a time, and only one iteration may go on."""
        self._file.seek(0)
        for number in range(self.units):
            locators = [json.loads(line) for line in islice(self._file, self.unit_size)]
            facts = json.dumps([self._work, self._version, number, locators])
            yield Unit(number, number * self.unit_size, locators, hashlib.sha256(facts.encode()).hexdigest())

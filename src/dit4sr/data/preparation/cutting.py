"""One unit of work: photos → shards, benchmark images, and a record of what became of each photo."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from dit4sr.data.degradations import degrade
from dit4sr.data.images import write_png
from dit4sr.data.patches import benchmark_crops, fitting_scales, training_patches
from dit4sr.data.photos import Photo
from dit4sr.data.preparation.additions import Additions
from dit4sr.data.preparation.filters import content_digest, mean_gradient
from dit4sr.data.preparation.listing import Unit
from dit4sr.data.preparation.settings import PrepareSettings
from dit4sr.data.preparation.sources import Skipped, Source, digest
from dit4sr.data.shards import EncodedSample, write_encoded
from dit4sr.files import write_atomically
from dit4sr.randomness import sample_seed, uniform

BENCHMARK_KINDS = {"test_HR": ".png", "test_LR": ".png", "prompts": ".txt"}
MOST_CROPS = 1 << 20  # of a unit's held-out photos, whose degradations are numbered from it


def record_path(work: Path, unit: int) -> Path:
    """Where a finished unit's record is; its presence says that the unit is done."""
    return work / "units" / f"{unit:06d}.json"


def read_record(work: Path, unit: Unit) -> dict[str, Any] | None:
    """The record of a unit that is done with these settings and photos, and whose shards are there; else None."""
    try:
        record = json.loads(record_path(work, unit.number).read_bytes())
        same = record["fingerprint"] == unit.fingerprint
        there = all((work / "shards" / s["name"]).stat().st_size == s["bytes"] for s in record["shards"])
    except (OSError, ValueError, LookupError, TypeError):
        return None
    return dict(record) if same and there else None


def cut_unit(work: Path, settings: PrepareSettings, source: Source, unit: Unit, additions: Additions) -> None:
    """Prepare a unit: ``<work>/shards/<unit>-<n>.tar``, ``<work>/benchmark/…``, then ``<work>/units/<unit>.json``.

    What it writes follows from the settings and the photos alone, so that it may be done again at any time.
    """
    cutter = _Cutter(work, settings, unit, additions)
    name = f"{unit.number:06d}-{{:06d}}.tar"
    shards = write_encoded(work / "shards", cutter.samples(source), settings.samples_per_shard, name)
    record = {
        "fingerprint": unit.fingerprint,
        "shards": [asdict(shard) for shard in shards],
        "photos": cutter.photos,
    }
    with write_atomically(record_path(work, unit.number)) as temporary:
        temporary.write_text(json.dumps(record), encoding="utf-8")


class _Cutter:
    """The photos of a unit, gone through once; ``photos`` says what became of each."""

    def __init__(self, work: Path, settings: PrepareSettings, unit: Unit, additions: Additions) -> None:
        self._settings = settings
        self._unit = unit
        self._additions = additions
        self._benchmark = work / "benchmark"
        self._crops = unit.number * MOST_CROPS
        self.photos: list[dict[str, Any]] = []

    def samples(self, source: Source) -> Iterator[EncodedSample]:
        """Yield the training samples of all photos that are not held out."""
        s = self._settings
        for k, locator in enumerate(self._unit.locators):
            for number, found in source.read(locator, self._unit.first + k):
                if isinstance(found, Skipped):
                    self._skip(found)
                    continue
                facts = self._facts(found, number)
                if found.held_out or uniform(s.seed, 0, f"hold out {found.scene}") < s.held_out:
                    self.photos.append({**facts, "status": "held_out", "benchmark": self._hold_out(found)})
                elif why := self._too_small(found):
                    self._skip(Skipped(found.name, "too small", why))
                else:
                    yield from self._use(found, number, facts)

    def _facts(self, photo: Photo, number: int) -> dict[str, Any]:
        height, width = photo.image.shape[:2]
        return {
            "number": number,
            "name": photo.name,
            "scene": photo.scene,
            "height": height,
            "width": width,
            "licence": self._settings.licence or photo.licence,
            "digest": content_digest(photo, self._settings.duplicates),
        }

    def _skip(self, skipped: Skipped) -> None:
        self.photos.append(
            {"status": "skipped", "name": skipped.name, "reason": skipped.reason, "detail": skipped.detail}
        )

    def _too_small(self, photo: Photo) -> str | None:
        s = self._settings
        height, width = photo.image.shape[:2]
        if not fitting_scales(photo, s.patch, s.scales):
            return f"{height}x{width} is smaller than the patch of {s.patch} px"
        if min(height, width) < s.min_side:
            return f"{height}x{width} has a side under min_side={s.min_side} px"
        return None

    def _use(self, photo: Photo, number: int, facts: Mapping[str, Any]) -> Iterator[EncodedSample]:
        s = self._settings
        flat: list[None] = []
        patches = training_patches(
            photo,
            number,
            patch=s.patch,
            patches_per_photo=s.patches_per_photo,
            scales=s.scales,
            seed=s.seed,
            policy=s.policy,
            stride=s.grid_stride,
            redraws=s.redraws,
            accept=(lambda image: mean_gradient(image) > s.min_gradient) if s.min_gradient else None,
            refused=partial(flat.append, None),
        )
        count = 0
        for sample in self._additions.added(photo, patches):
            count += 1
            yield sample.encoded(s.payload, s.quality)
        if count:
            self.photos.append({**facts, "status": "used", "patches": count, "flat_patches": len(flat)})
        else:
            detail = f"no patch has a mean gradient above min_gradient={s.min_gradient:g}"
            self._skip(Skipped(photo.name, "flat", detail))

    def _hold_out(self, photo: Photo) -> list[str]:
        """Write test_HR, test_LR and prompts; return their names.

        The ground truth is the pipeline's own: where the preset sharpens, the LR image is made from the sharpened
        crop and that crop is what a restoration can be held against (so were the published DIV2K pairs made).
        """
        s, names = self._settings, []
        stem = file_stem(photo.name)
        for k, crop in enumerate(benchmark_crops(photo.image, s.benchmark_crop)):
            hq, lq = degrade(crop, s.degradation, sample_seed(s.seed, self._crops, "benchmark"))
            self._crops += 1
            name = f"{stem}_{k}"
            write_png(self._benchmark / "test_HR" / f"{name}.png", hq)
            write_png(self._benchmark / "test_LR" / f"{name}.png", lq)
            with write_atomically(self._benchmark / "prompts" / f"{name}.txt") as temporary:
                temporary.write_text(photo.caption + "\n", encoding="utf-8", errors="replace")
            names.append(name)
        return names


def file_stem(name: str) -> str:
    """A photo's name as a file name of its own: a hash tells those apart that would have the same."""
    plain = "".join(c if c.isalnum() or c == "-" else "_" for c in os.path.splitext(name)[0])
    return name if plain == name else f"{plain[-100:]}-{digest(name.encode())[:8]}"

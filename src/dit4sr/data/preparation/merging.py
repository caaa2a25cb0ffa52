"""Finished units → the finished folder: duplicates out, shards under their final names, then the manifest.

Everything is decided first and noted in ``merge.json``; what follows are renames, which a killed merge takes up
where it stopped.
"""

from __future__ import annotations

import json
import os
import shutil
from array import array
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO

import numpy as np

from dit4sr.data.preparation.cutting import BENCHMARK_KINDS, read_record
from dit4sr.data.preparation.listing import Listing, Unit
from dit4sr.data.preparation.settings import PrepareSettings
from dit4sr.data.preparation.sources import CORRUPT
from dit4sr.data.shard_index import index_shard
from dit4sr.data.shards import MANIFEST, EncodedSample, ShardInfo, write_encoded, write_manifest
from dit4sr.errors import UserError
from dit4sr.files import write_atomically

PLAN = "merge.json"
PHOTOS = "photos.jsonl"
MOST_LISTED = 1000
"""Photos of a kind that the manifest itself lists; ``photos.jsonl`` lists all."""

Record = dict[str, Any]


def records(work: Path, listing: Listing) -> Iterator[tuple[Unit, Record | None]]:
    """Yield the units with their records, None where a unit is not done."""
    for unit in listing:
        yield unit, read_record(work, unit)


def merge(work: Path, out: Path, settings: PrepareSettings, listing: Listing, facts: dict[str, Any]) -> None:
    """Turn finished work into ``<out>/train``, ``<out>/benchmark`` and ``<out>/photos.jsonl``.

    Raises:
        UserError: not a single patch came out.
    """
    plan = read_plan(work, facts)
    if plan is None:
        (work / PLAN).unlink(missing_ok=True)
        plan = _plan(work, settings, listing, facts)
    (out / "train").mkdir(parents=True, exist_ok=True)
    (out / "train" / MANIFEST).unlink(missing_ok=True)  # from here to the end the folder is not whole
    shards = []
    for number, (name, samples, size, sha256) in enumerate(plan["shards"]):
        final = ShardInfo(f"train-{number:06d}.tar", samples, size, sha256)
        _move(work / name, out / "train" / final.name)
        shards.append(final)
    for kind, suffix in BENCHMARK_KINDS.items():
        if plan["benchmark"]:
            (out / "benchmark" / kind).mkdir(parents=True, exist_ok=True)
        for name in plan["benchmark"]:
            _move(work / "benchmark" / kind / (name + suffix), out / "benchmark" / kind / (name + suffix))
        _remove_others(out / "benchmark" / kind, f"*{suffix}", {name + suffix for name in plan["benchmark"]})
    _move(work / PHOTOS, out / PHOTOS)
    _remove_others(out / "train", "train-*.tar", {shard.name for shard in shards})
    write_manifest(out / "train", shards, plan["facts"])
    shutil.rmtree(work, ignore_errors=True)


def read_plan(work: Path, facts: dict[str, Any]) -> dict[str, Any] | None:
    """What a merge of the same settings and photos has begun to do, so that shards may have final names already."""
    try:
        plan = json.loads((work / PLAN).read_bytes())
    except (OSError, ValueError):
        return None
    return dict(plan) if plan["facts"]["settings"] == facts["settings"] else None


def _move(work: Path, final: Path) -> None:
    """Give a file its final name, unless an earlier merge has done so."""
    try:
        os.replace(work, final)
    except FileNotFoundError:
        if not final.is_file():
            raise


def _remove_others(folder: Path, pattern: str, keep: set[str]) -> None:
    """Remove what an earlier run with other settings left behind, and what a killed one did not finish."""
    for path in folder.glob(pattern):
        if path.name not in keep:
            path.unlink()


def _plan(work: Path, settings: PrepareSettings, listing: Listing, facts: dict[str, Any]) -> dict[str, Any]:
    duplicates = _duplicates(work, listing, settings.duplicates)
    tally = _Tally()
    shards: list[tuple[str, int, int, str]] = []
    with write_atomically(work / PHOTOS) as temporary, open(temporary, "w", encoding="utf-8") as file:
        for unit, record in records(work, listing):
            assert record is not None, "the caller has looked for missing units"
            dropped = {p["number"] for p in record["photos"] if p.get("number") in duplicates}
            written = [ShardInfo(**shard) for shard in record["shards"]]
            folder = "shards"
            if any(p["number"] in dropped and p["status"] == "used" for p in record["photos"] if "number" in p):
                written = _without(work, unit, written, dropped, settings.samples_per_shard)
                folder = "deduplicated"
            shards += [(f"{folder}/{s.name}", s.samples, s.bytes, s.sha256) for s in written]
            for photo in record["photos"]:
                tally.add(_as_duplicate(photo, duplicates), file)
    patches = sum(samples for _, samples, _, _ in shards)
    if not patches:
        shutil.rmtree(work, ignore_errors=True)  # nothing in it is worth going on with
        raise UserError(
            f"none of the {listing.photos} {listing.noun}s gave a patch of {settings.patch} px ({tally.skipped} skipped"
            f"{tally.why}, {tally.held_out} held out): pass a smaller patch=, or other photos."
        )
    plan = {"shards": shards, "benchmark": tally.benchmark, "facts": {**facts, **tally.facts(patches)}}
    with write_atomically(work / PLAN) as temporary:
        temporary.write_text(json.dumps(plan), encoding="utf-8")
    return plan


class _Tally:
    """What became of the photos, counted; each is also written as a line of ``photos.jsonl``."""

    def __init__(self) -> None:
        self.used = self.held_out = self.skipped = self.corrupt = self.flat_patches = 0
        self.reasons: Counter[str] = Counter()
        self.licences: Counter[str] = Counter()
        self.benchmark: list[str] = []
        self._listed: dict[str, list[Any]] = {"sources": [], "held_out": [], "skipped": []}

    def add(self, photo: Record, file: TextIO) -> None:
        status = photo["status"]
        if status == "used":
            self.used += 1
            self.flat_patches += photo["flat_patches"]
            entry: Any = {key: photo[key] for key in ("name", "scene", "height", "width", "patches", "licence")}
        elif status == "held_out":
            self.held_out += 1
            self.benchmark += photo["benchmark"]
            entry = photo["name"]
        else:
            self.skipped += 1
            self.corrupt += photo["reason"] in CORRUPT
            self.reasons[photo["reason"]] += 1
            corrupt = photo["reason"] in CORRUPT
            entry = {"name": photo["name"], "kind": photo["reason"], "reason": photo["detail"], "corrupt": corrupt}
        if status != "skipped":
            self.licences[photo["licence"]] += 1
        listed = self._listed["sources" if status == "used" else status]
        if len(listed) < MOST_LISTED:
            listed.append(entry)
        file.write(json.dumps(photo, sort_keys=True) + "\n")

    @property
    def why(self) -> str:
        """The reasons of what was skipped, with their counts."""
        return f": {', '.join(f'{n} {reason}' for reason, n in sorted(self.reasons.items()))}" if self.reasons else ""

    def facts(self, patches: int) -> dict[str, Any]:
        return {
            "counts": {
                "photos": self.used,
                "patches": patches,
                "held_out": self.held_out,
                "benchmark": len(self.benchmark),
                "skipped": self.skipped,
            },
            "reasons": dict(sorted(self.reasons.items())),
            "corrupt": self.corrupt,
            "flat_patches": self.flat_patches,
            "licences": dict(sorted(self.licences.items())),
            "photos": PHOTOS,
            **self._listed,
        }


def _duplicates(work: Path, listing: Listing, by: str) -> dict[int, str]:
    """Number of each photo whose content came before → name of the first one. 24 bytes a photo in memory."""
    if by == "keep":
        return {}
    numbers, digests = array("q"), bytearray()
    for _, record in records(work, listing):
        assert record is not None
        for photo in record["photos"]:
            if "number" in photo:
                numbers.append(photo["number"])
                digests += bytes.fromhex(photo["digest"])
    if not digests:
        return {}
    number = np.frombuffer(numbers, np.int64)
    content = np.frombuffer(digests, np.uint64).reshape(-1, 2)
    order = np.lexsort((content[:, 1], content[:, 0]))  # stable: the first photo of a content stays its first
    again = np.concatenate([[False], (content[order][1:] == content[order][:-1]).all(1)])
    first = np.maximum.accumulate(np.where(again, 0, np.arange(len(order))))
    of = {int(number[order[k]]): int(number[order[first[k]]]) for k in np.flatnonzero(again)}
    names: dict[int, str] = {}
    wanted = set(of.values())
    for _, record in records(work, listing):
        assert record is not None
        names.update({p["number"]: p["name"] for p in record["photos"] if p.get("number") in wanted})
    return {k: names[original] for k, original in of.items()}


def _as_duplicate(photo: Record, duplicates: dict[int, str]) -> Record:
    if photo.get("number") not in duplicates:
        return photo
    detail = f"the same picture as {duplicates[photo['number']]}"
    return {"status": "skipped", "name": photo["name"], "reason": "duplicate", "detail": detail}


def _without(
    work: Path, unit: Unit, shards: list[ShardInfo], dropped: set[int], samples_per_shard: int
) -> list[ShardInfo]:
    """Write a unit's shards again without the samples of some photos, as if these had never been there."""

    def kept() -> Iterator[EncodedSample]:
        for shard in shards:
            path = work / "shards" / shard.name
            with open(path, "rb") as file:
                for sample in index_shard(path):
                    if int(sample.key.partition("-")[0]) in dropped:
                        continue
                    members = {}
                    for extension, member in sample.members.items():
                        file.seek(member.offset)
                        members[extension] = file.read(member.size)
                    yield sample.key, members

    return write_encoded(work / "deduplicated", kept(), samples_per_shard, f"{unit.number:06d}-{{:06d}}.tar")

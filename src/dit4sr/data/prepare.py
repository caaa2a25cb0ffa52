"""Photos → training shards and a benchmark: what `python prepare.py` runs.

The photos of a source, in a fixed order, are cut into units of work. A unit is prepared by one process into
shards of its own, in a hidden folder beside the result, and then noted as done; so the work goes on where it was
stopped, on any number of processes and machines. The last step drops duplicates and gives the shards their final
names. Only then is there a ``train`` folder, and, last of all, its manifest.
"""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from dit4sr.config import config_dir
from dit4sr.data.degradations import load_preset
from dit4sr.data.preparation.listing import Listing
from dit4sr.data.preparation.locks import hold, remove_locks
from dit4sr.data.preparation.settings import EMBEDDED, Execution, PrepareSettings
from dit4sr.data.preparation.sources import CORRUPT, open_source
from dit4sr.data.shards import read_manifest
from dit4sr.errors import UserError
from dit4sr.files import check_folder, disk_errors, write_atomically

FORMAT = 2  # of the folder and of the embedded photos' list; raised when an older folder must be made again
LINES = 20
"""Skipped photos that are printed; the folder's list has all of them."""
WAIT_FOR_EMBEDDED = 600.0
"""Seconds that a training waits for another one that is making the embedded photos' shards."""


def run(config: Mapping[str, Any], explicit: Collection[str] = ()) -> int:
    """Run the verb ``prepare``; see `prepare`. ``explicit`` is not used."""
    return prepare(config)


def prepare(cfg: Mapping[str, Any]) -> int:
    """Write ``<out>/train`` (shards and manifest.json) and, from held-out photos, ``<out>/benchmark``.

    Does nothing where the manifest says that the same settings and photos were used already, and goes on where
    an earlier run of the same settings was stopped.

    Args:
        cfg: the composed ``configs/prepare.yaml``.

    Returns:
        The exit code: 0, or 1 where images were corrupt (they are listed).

    Raises:
        UserError: bad settings, no image, no photo large enough, a folder made with other settings or being
            written by another process, or a full disk.
    """
    settings = PrepareSettings.from_config(cfg)
    execution = Execution.from_config(cfg)
    out = Path(cfg["out"]).expanduser() if cfg.get("out") else Path(cfg["paths"]["data"]) / settings.name
    if read_manifest(out / "train") is None:  # else there may be nothing to write
        check_folder(out)
    with disk_errors(out, goes_on=True):
        return _prepare(settings, out, execution)


def ensure_embedded(data: str | Path) -> Path:
    """Return ``<data>/embedded``, made with the settings of ``configs/prepare.yaml`` unless it is there.

    A folder that the user prepared with other settings is left as it is.
    """
    out = Path(data) / EMBEDDED
    manifest = read_manifest(out / "train")
    if manifest is None or manifest.get("format") != FORMAT:
        cfg: dict[str, Any] = OmegaConf.to_container(OmegaConf.load(config_dir() / "prepare.yaml"))  # type: ignore[assignment]
        preset = next(e["degradation"] for e in cfg["defaults"] if isinstance(e, dict) and "degradation" in e)
        settings = PrepareSettings.from_config({**cfg, "degradation": asdict(load_preset(preset))})
        check_folder(out, "paths.data")
        with disk_errors(out, setting="paths.data", goes_on=True):
            _prepare(settings, out, Execution(overwrite=True), wait=WAIT_FOR_EMBEDDED)
    return out


def _prepare(settings: PrepareSettings, out: Path, execution: Execution, *, wait: float = 0) -> int:
    source = open_source(settings)
    if source.holds(out):
        raise UserError(f"out={out} lies inside source={settings.source}: write the shards to another folder.")
    # Late: these import torch, which takes seconds, and what is wrong with the settings or the source is known already.
    from dit4sr.data.preparation.additions import Additions
    from dit4sr.data.preparation.merging import merge, read_plan
    from dit4sr.data.preparation.running import run_units

    additions = Additions(settings, execution.device)
    additions.check()
    networks = additions.identities(execution.memo)
    del additions  # each process loads its own
    listing = Listing(source, settings)
    wanted = {**settings.identity(), "files": listing.fingerprint, "networks": networks}
    if (status := _finished(out, wanted, overwrite=execution.overwrite)) is not None:
        return status
    # Other networks are other work; other photos are not: a unit says itself which photos it is of.
    work = _work_folder(out, settings, networks)
    _refuse_unfinished(out, work, wanted, overwrite=execution.overwrite)
    with hold(out, execution, wait=wait), _leave_nothing_in_vain(out, work, execution):
        if (status := _finished(out, wanted, overwrite=execution.overwrite)) is not None:
            remove_locks(out)
            return status
        (work / "parts" / str(execution.parts)).mkdir(parents=True, exist_ok=True)
        facts = {
            "format": FORMAT,
            "dit4sr": _package_version(),
            "licence": settings.licence or source.licence,
            "settings": wanted,
        }
        with write_atomically(work / "settings.json") as temporary:
            temporary.write_text(json.dumps(wanted), encoding="utf-8")
        if read_plan(work, facts) is None:
            if not execution.merge:
                run_units(work, settings, source, listing, execution)
            if not execution.whole:
                return _report_part(work, listing, out, execution)
            _refuse_missing(work, listing)
        merge(work, out, settings, listing, facts)
        for other in out.glob(".work-*"):  # of other settings: begun in vain, or to be overwritten
            if execution.overwrite or not any((other / "units").glob("*.json")):
                shutil.rmtree(other, ignore_errors=True)
        remove_locks(out)
    manifest = read_manifest(out / "train")
    assert manifest is not None
    print(f"{out}: {_summary(manifest)}")
    return _report(manifest, out)


@contextmanager
def _leave_nothing_in_vain(out: Path, work: Path, execution: Execution) -> Iterator[None]:
    """Where the work fails before the first unit is done, leave the folder as it was."""
    try:
        yield
    except UserError:
        if execution.whole and not any((work / "units").glob("*.json")):
            shutil.rmtree(work, ignore_errors=True)
            remove_locks(out)
            with suppress(OSError):  # it holds something else
                out.rmdir()
        raise


def _work_folder(out: Path, settings: PrepareSettings, networks: Mapping[str, str]) -> Path:
    identity = settings.fingerprint()[:8] + "".join(f"-{networks[name][:8]}" for name in sorted(networks))
    return out / f".work-{identity}"


def _finished(out: Path, wanted: Mapping[str, Any], *, overwrite: bool) -> int | None:
    """The exit code where the folder is up to date; None where there is something to do.

    Raises:
        UserError: it was made with other settings, and they are not to be replaced.
    """
    manifest = read_manifest(out / "train")
    if manifest is None:
        return None
    if not whole(out, manifest):
        print(f"{out} has lost files or parts of them: making it again")
        return None
    if manifest.get("format") == FORMAT and manifest.get("settings") == wanted:
        print(f"{out} is up to date: {_summary(manifest)}")
        return _report(manifest, out)
    if not overwrite:
        raise UserError(
            f"{out} was prepared with other settings ({_differing(wanted, manifest.get('settings', {}))}): "
            "pass another out=<folder>, or overwrite=true to replace it."
        )
    return None


def _refuse_unfinished(out: Path, work: Path, wanted: Mapping[str, Any], *, overwrite: bool) -> None:
    """Refuse to begin anew beside work of other settings that somebody may want to go on with."""
    for other in sorted(out.glob(".work-*")):
        if overwrite or other == work or not any((other / "units").glob("*.json")):
            continue
        try:
            theirs = json.loads((other / "settings.json").read_bytes())
        except (OSError, ValueError):
            theirs = {}
        raise UserError(
            f"{out} holds unfinished work of other settings ({_differing(wanted, theirs)}): "
            "go on with those, pass another out=<folder>, or overwrite=true to discard it."
        )


def _differing(wanted: Mapping[str, Any], theirs: Mapping[str, Any]) -> str:
    return ", ".join(key for key in wanted if wanted[key] != theirs.get(key)) or "format"


def _refuse_missing(work: Path, listing: Listing) -> None:
    """Refuse to put together what is not all there."""
    from dit4sr.data.preparation.merging import records

    missing = [unit.number for unit, record in records(work, listing) if record is None]
    if not missing:
        return
    started = {int(path.name) for path in (work / "parts").iterdir()} - {1}
    if len(started) == 1:
        [parts] = started
        names = ", ".join(f"part={part}/{parts}" for part in sorted({number % parts for number in missing}))
        done = f"{names} must be run first"
    else:
        done = "run the parts first, part=0/n to part=n-1/n"
    raise UserError(f"merge=true: {len(missing)} of {listing.units} units of work are missing or outdated: {done}.")


def whole(out: Path, manifest: Mapping[str, Any]) -> bool:
    """Whether every shard of the manifest is there in its full size, and the benchmark with all its images."""
    shards = ((out / "train" / str(shard["name"]), shard.get("bytes")) for shard in manifest["shards"])
    images = manifest.get("counts", {}).get("benchmark", 0)
    return all(path.is_file() and path.stat().st_size == size for path, size in shards) and all(
        len(list((out / "benchmark" / kind).glob("*.png"))) >= images for kind in ("test_LR", "test_HR")
    )


def _summary(manifest: Mapping[str, Any]) -> str:
    counts = manifest["counts"]
    return (
        f"{counts['patches']} patches of {counts['photos']} photos in {len(manifest['shards'])} shards, "
        f"{counts['benchmark']} benchmark images of {counts['held_out']} held-out photos"
    )


def _report(manifest: Mapping[str, Any], out: Path) -> int:
    """Print the skipped photos; return the exit code."""
    from dit4sr.data.preparation.merging import PHOTOS

    skipped, corrupt = manifest["counts"]["skipped"], manifest["corrupt"]
    _print_skipped([(entry["name"], entry["reason"]) for entry in manifest["skipped"]], skipped, out / PHOTOS)
    if skipped:
        reasons = ", ".join(f"{count} {reason}" for reason, count in manifest["reasons"].items())
        print(f"{skipped} photos skipped, {corrupt} of them corrupt ({reasons})")
    if manifest["flat_patches"]:
        print(
            f"{manifest['flat_patches']} flat patches left out (min_gradient={manifest['settings']['min_gradient']:g})"
        )
    return 1 if corrupt else 0


def _report_part(work: Path, listing: Listing, out: Path, execution: Execution) -> int:
    """Print what a part has done; return the exit code."""
    from dit4sr.data.preparation.merging import records

    counts: Counter[str] = Counter()
    corrupt: list[tuple[str, str]] = []
    for unit, record in records(work, listing):
        if unit.number % execution.parts == execution.part and record is not None:
            counts["shards"] += len(record["shards"])
            counts["photos"] += len(record["photos"])
            bad = (photo for photo in record["photos"] if photo.get("reason") in CORRUPT)
            for photo in bad:
                counts["corrupt"] += 1
                if len(corrupt) < LINES:
                    corrupt.append((photo["name"], photo["detail"]))
    part = f"part={execution.part}/{execution.parts}"
    print(f"{out}: {part} is done: {counts['photos']} photos, {counts['shards']} shards; after all parts: merge=true")
    _print_skipped(corrupt, counts["corrupt"], None)
    return 1 if corrupt else 0


def _print_skipped(entries: list[tuple[str, str]], count: int, listed: Path | None) -> None:
    for entry in entries[:LINES]:
        # A name out of a tar may hold anything, also what a terminal takes for a command.
        name, reason = ("".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text) for text in entry)
        print(f"skipped {name}: {reason}")
    if count > LINES:
        print(f"… and {count - LINES} more" + (f", listed in {listed}" if listed else ""))


def _package_version() -> str:
    try:
        return version("dit4sr")
    except PackageNotFoundError:
        return "unknown"

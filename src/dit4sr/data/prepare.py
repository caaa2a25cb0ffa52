"""Photos → training shards and a benchmark: what `python prepare.py` runs."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Iterator, Mapping
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from itertools import chain
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from tqdm import tqdm

from dit4sr.config import config_dir
from dit4sr.data.degradations import degrade, load_preset
from dit4sr.data.images import UnreadableImage, write_png
from dit4sr.data.patches import benchmark_crops, fitting_scales, patch_count, training_patches
from dit4sr.data.photos import Photo, embedded_photos, photo_files, read_photo
from dit4sr.data.prepare_settings import EMBEDDED, PrepareSettings
from dit4sr.data.samples import uniform
from dit4sr.data.shards import MANIFEST, ShardSample, read_manifest, write_manifest, write_shards
from dit4sr.errors import UserError
from dit4sr.files import write_atomically
from dit4sr.randomness import sample_seed

FORMAT = 1  # of the folder and of the embedded photos' list; raised when an older folder must be made again


@dataclass(frozen=True)
class Skipped:
    """A photo that gave nothing; ``corrupt`` tells a broken file from one that is merely too small."""

    name: str
    reason: str
    corrupt: bool


def run(config: Mapping[str, Any], explicit: Collection[str] = ()) -> int:
    """Run the verb ``prepare``; see `prepare`. ``explicit`` is not used."""
    return prepare(config)


def prepare(cfg: Mapping[str, Any]) -> int:
    """Write ``<out>/train`` (shards and manifest.json) and, from held-out photos, ``<out>/benchmark``.

    Does nothing where the manifest says that the same settings and photos were used already.

    Args:
        cfg: the composed ``configs/prepare.yaml``.

    Returns:
        The exit code: 0, or 1 where images were corrupt (they are listed).

    Raises:
        UserError: bad settings, no image, no photo large enough, or a folder made with other settings.
    """
    settings = PrepareSettings.from_config(cfg)
    name = EMBEDDED if settings.source == EMBEDDED else Path(settings.source).name
    out = Path(cfg["out"]) if cfg.get("out") else Path(cfg["paths"]["data"]) / name
    return _prepare(settings, out, overwrite=bool(cfg.get("overwrite", False)))


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
        _prepare(settings, out, overwrite=True)
    return out


def _prepare(settings: PrepareSettings, out: Path, *, overwrite: bool) -> int:
    source = _Source(settings)
    if settings.source != EMBEDDED and out.resolve().is_relative_to(settings.source):
        raise UserError(f"out={out} lies inside source={settings.source}: write the shards to another folder.")
    wanted = json.loads(json.dumps({**asdict(settings), "files": source.fingerprint}))
    manifest = read_manifest(out / "train")
    if manifest is not None and not whole(out, manifest):
        print(f"{out} has lost files or parts of them: making it again")
    elif manifest is not None and manifest.get("format") == FORMAT and manifest.get("settings") == wanted:
        print(f"{out} is up to date: {_summary(manifest)}")
        return _report(manifest)
    elif manifest is not None and not overwrite:
        old = manifest.get("settings", {})
        differing = [key for key in wanted if wanted[key] != old.get(key)] or ["format"]
        raise UserError(
            f"{out} was prepared with other settings ({', '.join(differing)}): "
            "pass another out=<folder>, or overwrite=true to replace it."
        )

    patches = source.patches()
    first = next(patches, None)
    if first is None:
        raise UserError(
            f"none of the {source.seen} photos gave a patch of {settings.patch} px "
            f"({len(source.skipped)} skipped, {len(source.held_out)} held out): "
            "pass a smaller patch=, or other photos."
        )
    (out / "train" / MANIFEST).unlink(missing_ok=True)  # from here to the end the folder is not whole
    shards = write_shards(out / "train", chain([first], patches), settings.samples_per_shard)
    benchmark = _write_benchmark(out / "benchmark", source.held_out, settings)
    _remove_others(out / "train", "train-*.tar", {shard.name for shard in shards})
    facts = {
        "format": FORMAT,
        "dit4sr": _package_version(),
        "licence": source.licence,
        "settings": wanted,
        "counts": {
            "photos": len(source.used),
            "patches": sum(shard.samples for shard in shards),
            "held_out": len(source.held_out),
            "benchmark": len(benchmark),
            "skipped": len(source.skipped),
        },
        "sources": source.used,
        "held_out": [photo.name for photo in source.held_out],
        "skipped": [asdict(skipped) for skipped in source.skipped],
    }
    write_manifest(out / "train", shards, facts)
    manifest = read_manifest(out / "train")
    assert manifest is not None
    print(f"{out}: {_summary(manifest)}")
    return _report(manifest)


class _Source:
    """The photos of a source, gone through once, and what became of each."""

    def __init__(self, settings: PrepareSettings) -> None:
        self.settings = settings
        self.seen = 0
        self.used: list[dict[str, Any]] = []
        self.held_out: list[Photo] = []
        self.skipped: list[Skipped] = []
        self.embedded = settings.source == EMBEDDED
        self.folder = Path(settings.source)
        self.files = [] if self.embedded else photo_files(self.folder)

    @property
    def licence(self) -> str:
        """Licence field of the manifest."""
        return "see sources" if self.embedded else "unknown: the folder's own"

    @property
    def fingerprint(self) -> str:
        """Hash of a folder's file names and sizes, so that a changed folder is noticed."""
        names = [f"{path.relative_to(self.folder).as_posix()} {path.stat().st_size}" for path in self.files]
        return hashlib.sha256("\n".join(names).encode()).hexdigest()

    def photos(self) -> Iterator[Photo]:
        """Yield the readable photos; the others are listed in ``skipped``."""
        if self.embedded:
            photos = embedded_photos()
            yield from tqdm(photos, "photos", unit="photo", leave=False)
            return
        for path in tqdm(self.files, "photos", unit="photo", leave=False):
            try:
                photo = read_photo(path, self.folder)
            except UnreadableImage as error:
                self.skipped.append(Skipped(path.relative_to(self.folder).as_posix(), str(error), corrupt=True))
            else:
                yield photo

    def patches(self) -> Iterator[ShardSample]:
        """Yield the training patches of all photos that are not held out."""
        s = self.settings
        for photo in self.photos():
            self.seen += 1
            height, width = photo.image.shape[:2]
            if photo.held_out or uniform(s.seed, 0, f"hold out {photo.scene}") < s.held_out:
                self.held_out.append(photo)
                continue
            if not fitting_scales(photo, s.patch, s.scales):
                reason = f"{height}x{width} is smaller than the patch of {s.patch} px"
                self.skipped.append(Skipped(photo.name, reason, corrupt=False))
                continue
            yield from training_patches(
                photo,
                len(self.used),
                patch=s.patch,
                patches_per_photo=s.patches_per_photo,
                scales=s.scales,
                seed=s.seed,
            )
            self.used.append(
                {
                    "name": photo.name,
                    "scene": photo.scene,
                    "height": height,
                    "width": width,
                    "patches": patch_count(photo, s.patches_per_photo),
                    "licence": photo.licence,
                }
            )


def whole(out: Path, manifest: Mapping[str, Any]) -> bool:
    """Whether every shard of the manifest is there in its full size, and the benchmark with all its images."""
    shards = ((out / "train" / str(shard["name"]), shard.get("bytes")) for shard in manifest["shards"])
    images = manifest.get("counts", {}).get("benchmark", 0)
    return all(path.is_file() and path.stat().st_size == size for path, size in shards) and all(
        len(list((out / "benchmark" / kind).glob("*.png"))) >= images for kind in ("test_LR", "test_HR")
    )


def _write_benchmark(folder: Path, photos: list[Photo], settings: PrepareSettings) -> list[str]:
    """Write test_HR, test_LR and prompts; return the names.

    The ground truth is the pipeline's own: where the preset sharpens, the LR image is made from the sharpened
    crop and that crop is what a restoration can be held against (so were the published DIV2K pairs made).
    """
    names: list[str] = []
    for photo in photos:
        for k, hq in enumerate(benchmark_crops(photo.image, settings.benchmark_crop)):
            seed = sample_seed(settings.seed, len(names), "benchmark")
            hq, lq = degrade(hq, settings.degradation, seed)
            name = f"{photo.name.replace('/', '_')}_{k}"
            write_png(folder / "test_HR" / f"{name}.png", hq)
            write_png(folder / "test_LR" / f"{name}.png", lq)
            with write_atomically(folder / "prompts" / f"{name}.txt") as temporary:
                temporary.write_text(photo.caption + "\n", encoding="utf-8")
            names.append(name)
    for kind, suffix in (("test_HR", ".png"), ("test_LR", ".png"), ("prompts", ".txt")):
        _remove_others(folder / kind, f"*{suffix}", {name + suffix for name in names})
    return names


def _remove_others(folder: Path, pattern: str, keep: set[str]) -> None:
    """Remove what an earlier run with other settings left behind."""
    for path in folder.glob(pattern):
        if path.name not in keep and not path.name.startswith("."):
            path.unlink()


def _summary(manifest: dict[str, Any]) -> str:
    counts = manifest["counts"]
    return (
        f"{counts['patches']} patches of {counts['photos']} photos in {len(manifest['shards'])} shards, "
        f"{counts['benchmark']} benchmark images of {counts['held_out']} held-out photos"
    )


def _report(manifest: dict[str, Any]) -> int:
    """Print the skipped photos; return the exit code."""
    for skipped in manifest["skipped"]:
        print(f"skipped {skipped['name']}: {skipped['reason']}")
    corrupt = sum(skipped["corrupt"] for skipped in manifest["skipped"])
    if manifest["skipped"]:
        print(f"{len(manifest['skipped'])} photos skipped, {corrupt} of them corrupt")
    return 1 if corrupt else 0


def _package_version() -> str:
    try:
        return version("dit4sr")
    except PackageNotFoundError:
        return "unknown"

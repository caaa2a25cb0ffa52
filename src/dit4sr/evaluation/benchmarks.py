"""Benchmarks: folders of LR and HR images, paired by file name and checked before anything is restored."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from dit4sr.data.images import FORMATS, SUFFIXES, UnreadableImage
from dit4sr.errors import UserError

EXIF_ORIENTATION = 0x0112
SIDEWAYS = (5, 6, 7, 8)
"""EXIF orientations that swap width and height."""


@dataclass(frozen=True)
class BenchmarkImage:
    """One image of a benchmark.

    Attributes:
        name: the stem, unique in the benchmark; it names the restored file and chooses the noise.
        lq: the input's file.
        hq: the ground truth's file; None where the benchmark has none.
        size: (height, width) of the input.
        target: (height, width) of the result.
        prompt: "" is the null prompt.
    """

    name: str
    lq: Path
    hq: Path | None
    size: tuple[int, int]
    target: tuple[int, int]
    prompt: str


@dataclass(frozen=True)
class Skipped:
    """An image that could not be used, and why."""

    name: str
    reason: str


@dataclass(frozen=True)
class Benchmark:
    """A checked benchmark.

    Attributes:
        name: of its config.
        upscale: factor from LR to HR.
        images: sorted by name.
        skipped: images whose header cannot be read.
        prompts: in words, where the prompts come from.
    """

    name: str
    upscale: float
    images: tuple[BenchmarkImage, ...]
    skipped: tuple[Skipped, ...]
    prompts: str

    @property
    def has_ground_truth(self) -> bool:
        """Whether metrics against a reference can be computed."""
        return all(image.hq is not None for image in self.images)


def load_benchmark(
    config: Mapping[str, Any], *, fixed_prompt: str | None = None, prompts_required: bool = False
) -> Benchmark:
    """Find, pair and check a benchmark's images. Only headers are read.

    LR and HR belong together where their file names are identical, never by their order.

    Args:
        config: configs/benchmark.
        fixed_prompt: one prompt for all images in place of their captions.
        prompts_required: whether a missing folder of captions is an error, or means null prompts.

    Raises:
        UserError: a folder is missing or empty, names are unpaired, or count or sizes are wrong.
    """
    name = config["name"]
    lqs = _image_files(config, "lq")
    hqs = _image_files(config, "hq") if config["hq"] is not None else None
    if hqs is not None:
        _check_pairs(name, set(lqs), set(hqs))
    if config["count"] is not None and len(lqs) != config["count"]:
        raise UserError(
            f"benchmark {name} has {config['count']} images, but {config['lq']} has {len(lqs)}: complete it "
            f"(source: {config['source']}), or pass benchmark.count=null to use what is there"
        )
    captions, prompts = _captions(config, [Path(file).stem for file in lqs], fixed_prompt, prompts_required)

    images, skipped, wrong = [], [], []
    upscale = float(config["upscale"])
    for file in sorted(lqs):
        stem = Path(file).stem
        hq = hqs[file] if hqs is not None else None
        try:
            size = image_size(lqs[file])
            target = (round(size[0] * upscale), round(size[1] * upscale))
            if hq is not None and (actual := image_size(hq)) != target:
                wrong.append(f"{file} (LR {_by(size)}, HR {_by(actual)})")
        except UnreadableImage as error:
            skipped.append(Skipped(stem, str(error)))
            continue
        images.append(BenchmarkImage(stem, lqs[file], hq, size, target, captions.get(stem, "")))
    if wrong:
        raise UserError(
            f"benchmark {name}: HR is not {config['upscale']} times LR in {_some(wrong)}; "
            "remove or replace them, or pass the right benchmark.upscale="
        )
    if not images:
        raise UserError(f"benchmark {name}: none of the {len(lqs)} images in {config['lq']} can be read")
    return Benchmark(name, upscale, tuple(images), tuple(skipped), prompts)


def image_files(folder: Path, suffixes: Sequence[str] = SUFFIXES) -> dict[str, Path]:
    """Image files of a folder (not of folders inside it), by file name; hidden ones are left out."""
    return {
        path.name: path
        for path in sorted(folder.iterdir())
        if path.suffix.lower() in suffixes and not path.name.startswith(".") and path.is_file()
    }


def by_stem(files: Mapping[str, Path], folder: Path) -> dict[str, Path]:
    """The same files by stem.

    Raises:
        UserError: two files have one stem.
    """
    stems: dict[str, Path] = {}
    for path in files.values():
        if path.stem in stems:
            raise UserError(f"{folder} has both {stems[path.stem].name} and {path.name}: keep one of them")
        stems[path.stem] = path
    return stems


def image_size(path: Path) -> tuple[int, int]:
    """(height, width) from the header, as they are after the EXIF orientation is applied.

    Raises:
        UnreadableImage: where there is no readable header.
    """
    try:
        with Image.open(path, formats=FORMATS) as image:
            width, height = image.size
            # PNG's own getexif would decode the whole image, in search of EXIF data behind the pixels.
            sideways = Image.Image.getexif(image).get(EXIF_ORIENTATION) in SIDEWAYS
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise UnreadableImage(f"{path.name} is not a readable image ({type(error).__name__})") from error
    return (width, height) if sideways else (height, width)


def _image_files(config: Mapping[str, Any], which: str) -> dict[str, Path]:
    name, where = config["name"], config[which]
    if where is None:
        raise UserError(f"benchmark {name}: give benchmark.lq=<folder> benchmark.hq=<folder>")
    folder = Path(where)
    if not folder.is_dir():
        raise UserError(
            f"benchmark {name}: there is no folder {folder}; get {config['source']} and unpack it so that "
            f"{config['lq']} holds the LR images"
            + (f" and {config['hq']} the HR images" if config["hq"] is not None else "")
            + " (paths.benchmarks=<folder> where it lies elsewhere)"
        )
    files = image_files(folder)
    if not files:
        raise UserError(f"benchmark {name}: {folder} holds no image ({', '.join(SUFFIXES)})")
    by_stem(files, folder)
    return files


def _check_pairs(name: str, lqs: set[str], hqs: set[str]) -> None:
    alone = [(sorted(lqs - hqs), "without HR"), (sorted(hqs - lqs), "without LR")]
    if any(names for names, _ in alone):
        parts = "; ".join(f"{_some(names)} {what}" for names, what in alone if names)
        raise UserError(f"benchmark {name}: LR and HR are paired by identical file names, but {parts}")


def _captions(
    config: Mapping[str, Any], stems: list[str], fixed: str | None, required: bool
) -> tuple[dict[str, str], str]:
    """Prompt by stem, and where they come from in words."""
    if fixed is not None:
        return dict.fromkeys(stems, fixed), f"fixed: {fixed!r}" if fixed else "the null prompt for all"
    if config["prompts"] is None:
        return {}, "the null prompt for all"
    folder = Path(config["prompts"])
    if not folder.is_dir():
        if required:
            raise UserError(f"benchmark.prompts={folder} is no folder: give one that holds <stem>.txt files")
        return {}, f"the null prompt for all ({folder} does not exist)"
    files = {stem: folder / f"{stem}.txt" for stem in stems}
    found = {
        stem: path.read_text(encoding="utf-8", errors="replace").strip()
        for stem, path in files.items()
        if path.is_file()
    }
    without = len(stems) - len(found)
    note = f"; the null prompt for {without} without a file" if without else ""
    return found, f"captions of {folder}{note}"


def _by(size: tuple[int, int]) -> str:
    return f"{size[1]}×{size[0]}"


def _some(names: list[str], most: int = 5) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more

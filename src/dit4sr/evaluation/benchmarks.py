"""Benchmarks: folders of LR and HR images, paired by file name and checked before anything is restored."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dit4sr.data.images import SUFFIXES, UnreadableImage
from dit4sr.errors import UserError
from dit4sr.evaluation.image_folders import by_stem, find_images, image_size

LEAST_SIDE = 11
"""Pixels that both sides of a result need: the side of SSIM's window."""

ANYWAY = "benchmark.allow_incomplete=true"
"""The flag that takes a benchmark as it is."""


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
        skipped: images that cannot be used.
        prompts: in words, where the prompts come from.
        checked: whether a partner that shows something else is refused.
        notes: in words, what was let pass by ``allow_incomplete``.
    """

    name: str
    upscale: float
    images: tuple[BenchmarkImage, ...]
    skipped: tuple[Skipped, ...]
    prompts: str
    checked: bool = True
    notes: tuple[str, ...] = ()

    @property
    def has_ground_truth(self) -> bool:
        """Whether metrics against a reference can be computed."""
        return all(image.hq is not None for image in self.images)


def load_benchmark(
    config: Mapping[str, Any], *, fixed_prompt: str | None = None, prompts_required: bool = False
) -> Benchmark:
    """Find, pair and check a benchmark's images. Headers are read, and the pixels of up to a hundred pairs.

    LR and HR belong together where their file names are identical, never by their order, and must show the same.

    Args:
        config: configs/benchmark. ``allow_incomplete`` takes what is there: other counts, the names that both
            folders have, the pairs whose sizes fit; what they show is not compared then.
        fixed_prompt: one prompt for all images in place of their captions.
        prompts_required: whether a missing folder of captions is an error, or means null prompts.

    Raises:
        UserError: a folder is missing or empty, names are unpaired, count, sizes or content are wrong, or a
            setting is no number.
    """
    name, upscale = config["name"], _upscale(config["upscale"])
    anyway = bool(config.get("allow_incomplete", False))
    lqs = _image_files(config, "lq")
    hqs = _image_files(config, "hq") if config["hq"] is not None else None
    notes: list[str] = []
    if hqs is not None:
        lqs, hqs = _paired(name, lqs, hqs, anyway, notes)
    _check_count(config, len(lqs), anyway, notes)
    captions, prompts = _captions(config, [Path(file).stem for file in lqs], fixed_prompt, prompts_required)

    images, skipped, wrong, unusual = [], [], [], 0
    for file in sorted(lqs):
        stem = Path(file).stem
        hq = hqs[file] if hqs is not None else None
        try:
            size = image_size(lqs[file])
            actual = image_size(hq) if hq is not None else None
        except UnreadableImage as error:
            skipped.append(Skipped(stem, str(error)))
            continue
        target = (round(size[0] * upscale), round(size[1] * upscale))
        expected = config.get("lq_size")
        if expected is not None and size != tuple(expected):
            unusual += 1
            if not anyway:
                wrong.append(f"{file} (LR {_by(size)} where the benchmark has {_by(tuple(expected))})")
        if actual is not None and actual != target:
            wrong.append(f"{file} (LR {_by(size)}, HR {_by(actual)})")
            skipped.append(Skipped(stem, f"LR {_by(size)}, HR {_by(actual)}"))
        elif min(target) < LEAST_SIDE:
            skipped.append(Skipped(stem, f"its result has {_by(target)} pixels; the metrics need {LEAST_SIDE} a side"))
        else:
            images.append(BenchmarkImage(stem, lqs[file], hq, size, target, captions.get(stem, "")))
    if wrong and not anyway:
        raise UserError(
            f"benchmark {name}: sizes are wrong in {_some(wrong)}; HR must be {config['upscale']} times LR: remove or "
            f"replace them, pass the right benchmark.upscale=, or {ANYWAY} to use those that fit"
        )
    if unusual:
        notes.append(f"{unusual} LR images are not {_by(tuple(config['lq_size']))}")
    if not images:
        raise UserError(
            f"benchmark {name}: none of the {len(lqs)} images in {config['lq']} can be used"
            + (f": {skipped[0].name}: {skipped[0].reason}" if skipped else "")
        )
    if hqs is not None and not anyway:
        _check_content(name, images)
    return Benchmark(name, upscale, tuple(images), tuple(skipped), prompts, not anyway, tuple(notes))


def _upscale(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 1 <= value <= 64:
        raise UserError(f"benchmark.upscale={value}: give the factor from LR to HR, such as 4")
    return float(value)


def _image_files(config: Mapping[str, Any], which: str) -> dict[str, Path]:
    name, where = config["name"], config[which]
    if where is None:
        raise UserError(f"benchmark {name}: give benchmark.lq=<folder> benchmark.hq=<folder>")
    folder = Path(where).expanduser()
    if not folder.is_dir():
        raise UserError(
            f"benchmark {name}: there is no folder {folder}; get {config['source']} and unpack it so that "
            f"{config['lq']} holds the {'LR ' if config['hq'] is not None else ''}images"
            + (f" and {config['hq']} the HR images" if config["hq"] is not None else "")
            + (", or pass benchmark.download=true," if config.get("hub") else "")
            + " (paths.benchmarks=<folder> where it lies elsewhere)"
        )
    folder, files = find_images(folder)
    if not files:
        raise UserError(f"benchmark {name}: {folder} holds no image ({', '.join(SUFFIXES)})")
    by_stem(files, folder)
    return files


def _paired(
    name: str, lqs: dict[str, Path], hqs: dict[str, Path], anyway: bool, notes: list[str]
) -> tuple[dict[str, Path], dict[str, Path]]:
    """The files whose names both folders have."""
    alone = [(sorted(set(lqs) - set(hqs)), "without HR"), (sorted(set(hqs) - set(lqs)), "without LR")]
    parts = "; ".join(f"{_some(names)} {what}" for names, what in alone if names)
    common = sorted(set(lqs) & set(hqs))
    if parts and (not anyway or not common):
        raise UserError(
            f"benchmark {name}: LR and HR are paired by identical file names, but {parts}"
            + (f"; {ANYWAY} takes the {len(common)} pairs there are" if common else "")
        )
    if parts:
        notes.append(f"unpaired images left out: {parts}")
    return {file: lqs[file] for file in common}, {file: hqs[file] for file in common}


def _check_count(config: Mapping[str, Any], found: int, anyway: bool, notes: list[str]) -> None:
    count = config["count"]
    if count is None or found == count:
        return
    if not anyway:
        raise UserError(
            f"benchmark {config['name']} has {count} images, but {config['lq']} has {found}: complete it "
            f"(source: {config['source']}), or pass {ANYWAY} (or benchmark.count=null) to use what is there"
        )
    notes.append(f"{found} images where the benchmark has {count}")


def _check_content(name: str, images: Sequence[BenchmarkImage]) -> None:
    from dit4sr.evaluation.pairing import mispaired

    hqs = [image.hq for image in images if image.hq is not None]
    wrong = mispaired([i.name for i in images], [i.lq for i in images], hqs, [i.size for i in images])
    if wrong:
        raise UserError(
            f"benchmark {name}: LR and HR of one name show different things in {len(wrong)} images: {_some(wrong)}; "
            f"pair them again, or pass {ANYWAY} where they are right as they are"
        )


def _captions(
    config: Mapping[str, Any], stems: list[str], fixed: str | None, required: bool
) -> tuple[dict[str, str], str]:
    """Prompt by stem, and where they come from in words."""
    if fixed is not None:
        return dict.fromkeys(stems, fixed), f"fixed: {fixed!r}" if fixed else "the null prompt for all"
    if config["prompts"] is None:
        return {}, "the null prompt for all"
    folder = Path(config["prompts"]).expanduser()
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


def _by(size: tuple[int, ...]) -> str:
    return f"{size[1]}×{size[0]}"


def _some(names: list[str], most: int = 5) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more

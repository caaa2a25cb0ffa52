"""An evaluation's work as a list of blocks that depends on the benchmark and the settings alone.

A block's images are restored together, always in the same batches, so that neither the number of processes nor
what an earlier run has finished changes a result. Processes take whole blocks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from dit4sr.data.images import Image8, UnreadableImage, read_image
from dit4sr.evaluation.benchmarks import Benchmark, BenchmarkImage, Skipped


@dataclass(frozen=True)
class Atom:
    """One image under one seed, with all its samples: what is finished, and written down, as a whole.

    Attributes:
        number: of the atom; the same in all processes.
        image: of the benchmark.
        seed: of the run.
    """

    number: int
    image: BenchmarkImage
    seed: int


Block = tuple[Atom, ...]


def plan(benchmark: Benchmark, seeds: Sequence[int], units: int, batch_size: int) -> list[Block]:
    """Blocks of images of one size that fill a batch.

    Args:
        benchmark: its images.
        seeds: each image is restored under every one.
        units: restorations of an atom.
        batch_size: restorations that are computed together.
    """
    by_size: dict[tuple[int, int], list[BenchmarkImage]] = {}
    for image in benchmark.images:
        by_size.setdefault(image.size, []).append(image)
    numbers = {image.name: i for i, image in enumerate(benchmark.images)}
    together = max(1, batch_size // units)
    blocks: list[Block] = []
    for images in by_size.values():
        for start in range(0, len(images), together):
            for at, seed in enumerate(seeds):
                blocks.append(
                    tuple(
                        Atom(numbers[image.name] * len(seeds) + at, image, seed)
                        for image in images[start : start + together]
                    )
                )
    return blocks


def batches(units: int, batch_size: int) -> list[slice]:
    """Parts of at most ``batch_size`` units, as even as can be."""
    count = -(-units // batch_size)
    bounds = [round(units * i / count) for i in range(count + 1)]
    return [slice(a, b) for a, b in zip(bounds, bounds[1:], strict=False)]


def donors(benchmark: Benchmark) -> dict[str, list[BenchmarkImage]]:
    """For each image the others, from the next one on: a cyclic shift leaves none in its place."""
    images = list(benchmark.images)
    return {image.name: images[i + 1 :] + images[:i] for i, image in enumerate(images)}


def read_pair(image: BenchmarkImage, checked: bool) -> tuple[Image8, Image8 | None] | Skipped:
    """An image's LR and ground truth, or why they cannot be used."""
    try:
        lq = read_sized(image.lq, image.size)
        truth = None if image.hq is None else read_sized(image.hq, image.target)
    except UnreadableImage as error:
        return Skipped(image.name, str(error))
    if checked and truth is not None:
        from dit4sr.evaluation.pairing import same_content

        if not same_content(lq, truth):
            return Skipped(image.name, f"{image.lq} and {image.hq} show different things: pair them again")
    return lq, truth


def read_sized(path: Path, size: tuple[int, int]) -> Image8:
    """Read an image that must have that (height, width).

    Raises:
        UnreadableImage: naming the file.
    """
    try:
        image = read_image(path)
    except UnreadableImage as error:
        raise UnreadableImage(f"{path}: {error}") from error
    except OSError as error:
        raise UnreadableImage(f"{path}: {error.strerror}") from error
    if image.shape[:2] != size:
        raise UnreadableImage(f"{path}: its pixels are {image.shape[:2]} where its header says {size}")
    return image

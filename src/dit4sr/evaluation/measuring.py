"""Restoring a benchmark's images in batches of one size, and measuring each as it comes."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from dit4sr.data.images import Image8, UnreadableImage, read_image, write_png
from dit4sr.errors import UserError
from dit4sr.evaluation.benchmarks import Benchmark, BenchmarkImage, Skipped
from dit4sr.evaluation.methods import Bicubic, ImageFloat, Method, Task
from dit4sr.evaluation.metrics import Metric, pyiqa_version
from dit4sr.evaluation.tables import Row
from dit4sr.restoration.noise import noise_seed

SHUFFLED = -1
"""In place of a sample's number: the control that gets another image's LR."""


@dataclass(frozen=True, eq=False)
class Example:
    """What the comparison picture shows of one image."""

    name: str
    lq: Image8
    bicubic: Image8
    restored: Image8
    mean: Image8 | None
    truth: Image8


@dataclass(frozen=True)
class Measured:
    """The result of :func:`measure`.

    Attributes:
        rows: an image after the other, in order of their names.
        skipped: images that could not be read.
        examples: for the picture.
        seconds_per_image: of restoring, one sample, without reading, writing and measuring.
    """

    rows: list[Row]
    skipped: list[Skipped]
    examples: list[Example]
    seconds_per_image: float


def mean_name(method: str, samples: int) -> str:
    """The table's name of the average of that many samples."""
    return f"{method} (mean of {samples})"


def shuffled_name(method: str) -> str:
    """The table's name of the control whose LR images are shuffled."""
    return f"{method} (shuffled LR)"


@dataclass(eq=False)
class _Collected:
    """The samples of one image so far."""

    image: BenchmarkImage
    lq: Image8
    truth: Image8
    left: int
    values: dict[str, list[float]] = field(default_factory=dict)
    first: Image8 | None = None
    total: ImageFloat | None = None
    shuffled: dict[str, float] = field(default_factory=dict)


def measure(
    benchmark: Benchmark,
    method: Method,
    metrics: Sequence[Metric],
    out: Path,
    *,
    seed: int,
    samples: int,
    shuffled: bool,
    batch_size: int,
    pictures: int,
) -> Measured:
    """Restore and measure a benchmark that has a ground truth.

    Every image is measured as the 8-bit PNG that it is written as. Its noise follows from the seed, its name
    and the sample's number, so neither order, batches nor other images change a result. With several samples
    the method's rows hold the mean of the samples' values, and its "(mean of n)" rows the values of the
    average image.

    Args:
        out: gets restored/<stem>.png (the first sample) and restored_mean/<stem>.png.
        seed: the run's.
        samples: restorations of each image.
        shuffled: whether to restore each image from the next one's LR too.
        batch_size: images of one size restored together.
        pictures: number of examples to keep.
    """
    sink = _Sink(method, metrics, out, seed, samples, keep=_spread(benchmark.images, pictures))
    skipped = list(benchmark.skipped)
    donors = _donors(benchmark) if shuffled else None
    total = len(benchmark.images) * (samples + bool(shuffled))
    spent, done = 0.0, 0
    by_size: dict[tuple[int, int], list[BenchmarkImage]] = {}
    for image in benchmark.images:
        by_size.setdefault(image.size, []).append(image)
    # Few lines where nobody watches, as in a log file.
    interval = 0.2 if sys.stderr.isatty() else 10
    description = f"{benchmark.name}: {method.name}"
    with tqdm(total=total, desc=description, unit="image", mininterval=interval) as progress:
        for images in by_size.values():
            work = _tasks(images, benchmark, seed, samples, donors, skipped, progress)
            while batch := list(islice(work, batch_size)):
                started = time.perf_counter()
                try:
                    restored = method.restore([task for _, _, task in batch])
                except UnreadableImage:
                    restored, batch = _one_by_one(method, batch, skipped)
                spent, done = spent + time.perf_counter() - started, done + len(batch)
                for (collected, sample, _), image_float in zip(batch, restored, strict=True):
                    sink.add(collected, sample, image_float)
                progress.update(len(batch))
    rows = [row for name in sorted(sink.rows) for row in sink.rows[name]]
    if not rows:
        raise UserError(f"benchmark {benchmark.name}: none of its images could be read; get them again")
    examples = [sink.examples[name] for name in sorted(sink.examples)]
    return Measured(rows, sorted(skipped, key=lambda s: s.name), examples, spent / max(1, done))


def quantise(image: NDArray[np.floating]) -> Image8:
    """[0, 1] → uint8, rounded to nearest and clipped."""
    return np.rint(np.clip(image, 0, 1) * 255).astype(np.uint8)


def fit(image: Image8, height: int, width: int) -> Image8:
    """The image's top left part of that size, extended by reflection where it is too small."""
    image = image[:height, :width]
    down, right = height - image.shape[0], width - image.shape[1]
    return np.pad(image, ((0, down), (0, right), (0, 0)), mode="symmetric")


_Work = tuple[_Collected, int, Task]


def _tasks(
    images: Iterable[BenchmarkImage],
    benchmark: Benchmark,
    seed: int,
    samples: int,
    donors: dict[str, list[BenchmarkImage]] | None,
    skipped: list[Skipped],
    progress: tqdm,
) -> Iterator[_Work]:
    """Read images one by one and yield what is to be done; unreadable ones are added to ``skipped``."""
    for image in images:
        assert image.hq is not None
        try:
            lq, truth = _read(image.lq, image.size), _read(image.hq, image.target)
        except UnreadableImage as error:
            skipped.append(Skipped(image.name, str(error)))
            progress.total -= samples + (donors is not None)
            continue
        collected = _Collected(image, lq, truth, left=samples + (donors is not None))
        seeds = [noise_seed(seed, image.name, k) for k in range(samples)]
        for k in range(samples):
            yield collected, k, Task(image, lq, seeds[k])
        if donors is not None:
            other = fit(_first_readable(donors[image.name]), *image.size)
            yield collected, SHUFFLED, Task(image, other, seeds[0])


def _read(path: Path, size: tuple[int, int]) -> Image8:
    try:
        image = read_image(path)
    except UnreadableImage as error:
        raise UnreadableImage(f"{path}: {error}") from error
    except OSError as error:
        raise UnreadableImage(f"{path}: {error.strerror}") from error
    if image.shape[:2] != size:
        raise UnreadableImage(f"{path}: its pixels are {image.shape[:2]} where its header says {size}")
    return image


def _donors(benchmark: Benchmark) -> dict[str, list[BenchmarkImage]]:
    """For each image the others, from the next one on: a cyclic shift leaves none in its place."""
    images = list(benchmark.images)
    return {image.name: images[i + 1 :] + images[:i] for i, image in enumerate(images)}


def _first_readable(images: Iterable[BenchmarkImage]) -> Image8:
    for image in images:
        try:
            return _read(image.lq, image.size)
        except UnreadableImage:
            continue
    raise UserError("shuffled=true needs two readable images")


def _one_by_one(method: Method, batch: list[_Work], skipped: list[Skipped]) -> tuple[list[ImageFloat], list[_Work]]:
    """A batch in which the method's own image of some task cannot be read: the others."""
    restored, kept = [], []
    for work in batch:
        try:
            restored += method.restore([work[2]])
            kept.append(work)
        except UnreadableImage as error:
            skipped.append(Skipped(work[2].image.name, f"of {method.name}: {error}"))
    return restored, kept


def _spread(images: Sequence[BenchmarkImage], count: int) -> set[str]:
    """Names of that many images, spread evenly."""
    count = min(count, len(images))
    return {images[i * len(images) // count].name for i in range(count)}


class _Sink:
    """Takes restored images, writes and measures them, and lets them go."""

    def __init__(
        self, method: Method, metrics: Sequence[Metric], out: Path, seed: int, samples: int, keep: set[str]
    ) -> None:
        self.method, self.metrics, self.out = method, metrics, out
        self.seed, self.samples, self.keep = seed, samples, keep
        self.bicubic = Bicubic()
        self.rows: dict[str, list[Row]] = {}
        self.examples: dict[str, Example] = {}
        self.pyiqa = pyiqa_version()

    def add(self, collected: _Collected, sample: int, restored: ImageFloat) -> None:
        """Take one restored image; when all of its samples are there, make its rows."""
        image = quantise(restored)
        values = self.score(image, collected.truth)
        if sample == SHUFFLED:
            collected.shuffled = values
        else:
            for name, value in values.items():
                collected.values.setdefault(name, []).append(value)
            collected.total = restored if collected.total is None else collected.total + restored
            if sample == 0:
                collected.first = image
                write_png(self.out / "restored" / f"{collected.image.name}.png", image)
        collected.left -= 1
        if not collected.left:
            self.finish(collected)

    def score(self, restored: Image8, truth: Image8) -> dict[str, float]:
        """Value by metric."""
        return {metric.name: metric(restored, truth) for metric in self.metrics}

    def finish(self, collected: _Collected) -> None:
        """Rows, the average and the example of an image that is complete."""
        name, truth = collected.image.name, collected.truth
        assert collected.first is not None and collected.total is not None
        bicubic = collected.first
        values: dict[str, dict[str, float]] = {}
        if self.method.name != self.bicubic.name:
            bicubic = quantise(self.bicubic.restore([Task(collected.image, collected.lq, 0)])[0])
            values[self.bicubic.name] = self.score(bicubic, truth)
        values[self.method.name] = {metric: float(np.mean(v)) for metric, v in collected.values.items()}
        mean = None
        if self.samples > 1:
            mean = quantise(collected.total / self.samples)
            write_png(self.out / "restored_mean" / f"{name}.png", mean)
            values[mean_name(self.method.name, self.samples)] = self.score(mean, truth)
        if collected.shuffled:
            values[shuffled_name(self.method.name)] = collected.shuffled
        self.rows[name] = [
            Row(name, method, m.name, scores[m.name], m.protocol, m.channel, m.border, self.pyiqa, self.seed)
            for method, scores in values.items()
            for m in self.metrics
        ]
        if name in self.keep:
            self.examples[name] = Example(name, collected.lq, bicubic, collected.first, mean, truth)

"""Restoring a benchmark's images block by block, and measuring and writing down each as it comes."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from tqdm import tqdm

from dit4sr.data.images import Image8, UnreadableImage, read_image
from dit4sr.errors import UserError
from dit4sr.evaluation.benchmarks import Benchmark, BenchmarkImage, Skipped
from dit4sr.evaluation.journal import Entry, Journal, Key
from dit4sr.evaluation.methods import Bicubic, ImageFloat, Method, Task
from dit4sr.evaluation.metrics import Metric
from dit4sr.evaluation.processes import Group
from dit4sr.evaluation.restored import (
    Settings,
    mean_file,
    mean_name,
    quantise,
    restored_file,
    shuffled_name,
    write_restored,
)
from dit4sr.evaluation.work import Atom, Block, batches, donors, plan, read_pair, read_sized
from dit4sr.restoration.noise import noise_seed

SHUFFLED = -1
"""In place of a sample's number: the control that gets another image's LR."""


@dataclass(frozen=True)
class Measured:
    """What a process did.

    Attributes:
        entries: finished now.
        skipped: images that could not be used.
        undefined: metric → why it has no value for some image.
    """

    entries: list[Entry]
    skipped: list[Skipped]
    undefined: dict[str, str]


def fit(image: Image8, height: int, width: int) -> Image8:
    """The image's top left part of that size, extended by reflection where it is too small."""
    image = image[:height, :width]
    down, right = height - image.shape[0], width - image.shape[1]
    return np.pad(image, ((0, down), (0, right), (0, 0)), mode="symmetric")


@dataclass(eq=False)
class _Collected:
    """The samples of one atom so far."""

    atom: Atom
    lq: Image8
    truth: Image8 | None
    left: int
    values: dict[str, dict[str, list[float]]] = field(default_factory=dict)
    total: ImageFloat | None = None
    seconds: float = 0.0
    warm_up: bool = False


def measure(
    benchmark: Benchmark,
    method: Method,
    metrics: Sequence[Metric],
    out: Path,
    settings: Settings,
    *,
    group: Group,
    journal: Journal,
    finished: dict[Key, Entry],
) -> Measured:
    """Restore and measure this process's share of a benchmark.

    Every image is measured as the 8-bit PNG that it is written as. Its noise follows from the seed, its name and
    the sample's number, so neither order, batches nor other images change a result.

    Args:
        out: gets the restored images, see :func:`restored_file` and :func:`mean_file`.
        group: this process takes every ``group.size``-th block.
        journal: told of each atom when it is finished.
        finished: atoms that an earlier run finished; blocks of nothing else are left out.

    """
    every = plan(benchmark, settings.seeds, settings.units, settings.batch_size)
    todo = [block for block in every if any((a.image.name, a.seed) not in finished for a in block)]
    mine = todo[group.rank :: group.size]
    sink = _Sink(benchmark, method, metrics, out, settings, journal, finished)
    others = donors(benchmark) if settings.shuffled else None
    skipped: list[Skipped] = []
    warmed: set[tuple[int, ...]] = set()
    # Few lines where nobody watches, as in a log file.
    interval = 0.2 if sys.stderr.isatty() else 10
    words = f"{benchmark.name}: {method.name}"
    total, before = (
        sum(len(b) for b in blocks) * settings.units for blocks in (every, [b for b in every if b not in todo])
    )
    with tqdm(
        total=total, initial=before, desc=words, unit="image", mininterval=interval, disable=not group.first
    ) as bar:
        for block in mine:
            _restore_block(block, method, settings, sink, others, skipped, benchmark.checked, warmed)
            bar.update(len(block) * settings.units * group.size)
    return Measured(sink.entries, skipped, sink.undefined)


_Unit = tuple[_Collected, int, Task]


def _restore_block(
    block: Block,
    method: Method,
    settings: Settings,
    sink: _Sink,
    others: dict[str, list[BenchmarkImage]] | None,
    skipped: list[Skipped],
    checked: bool,
    warmed: set[tuple[int, ...]],
) -> None:
    """``warmed``: sizes and numbers of images that this process has restored before; it is added to."""
    units: list[_Unit] = []
    for atom in block:
        pair = read_pair(atom.image, checked)
        if isinstance(pair, Skipped):
            skipped.append(pair)
            continue
        collected = _Collected(atom, *pair, left=settings.units)
        seeds = [noise_seed(atom.seed, atom.image.name, k) for k in range(settings.samples)]
        units += [(collected, k, Task(atom.image, collected.lq, seeds[k])) for k in range(settings.samples)]
        if others is not None:
            other = fit(_first_readable(others[atom.image.name]), *atom.image.size)
            units.append((collected, SHUFFLED, Task(atom.image, other, seeds[0])))
    if not units:
        return
    for part in batches(len(units), settings.batch_size):
        batch = units[part]
        started = time.perf_counter()
        try:
            restored = method.restore([task for _, _, task in batch])
        except UnreadableImage:
            restored, batch = _one_by_one(method, batch, skipped)
        seconds = (time.perf_counter() - started) / max(1, len(batch))
        size = (*units[0][2].lq.shape, part.stop - part.start)
        warm_up = size not in warmed
        warmed.add(size)
        for (collected, sample, _), image in zip(batch, restored, strict=True):
            collected.seconds += seconds
            collected.warm_up |= warm_up
            sink.add(collected, sample, image)


def _first_readable(images: Iterable[BenchmarkImage]) -> Image8:
    for image in images:
        try:
            return read_sized(image.lq, image.size)
        except UnreadableImage:
            continue
    raise UserError("shuffled=true needs two readable images")


def _one_by_one(method: Method, batch: list[_Unit], skipped: list[Skipped]) -> tuple[list[ImageFloat], list[_Unit]]:
    """A batch in which the method's own image of some task cannot be read: the others."""
    restored, kept = [], []
    for unit in batch:
        try:
            restored += method.restore([unit[2]])
            kept.append(unit)
        except UnreadableImage as error:
            skipped.append(Skipped(unit[2].image.name, f"of {method.name}: {error}"))
    return restored, kept


class _Sink:
    """Takes restored images, writes and measures them, notes what is finished, and lets them go."""

    def __init__(
        self,
        benchmark: Benchmark,
        method: Method,
        metrics: Sequence[Metric],
        out: Path,
        settings: Settings,
        journal: Journal,
        finished: dict[Key, Entry],
    ) -> None:
        self.method, self.metrics, self.out, self.settings = method, metrics, out, settings
        self.journal, self.finished = journal, finished
        self.facts = {"benchmark": benchmark.name, "method": {"name": method.name, **method.settings}}
        self.bicubic = Bicubic()
        self.entries: list[Entry] = []
        self.undefined: dict[str, str] = {}

    def add(self, collected: _Collected, sample: int, restored: ImageFloat) -> None:
        """Take one restored image; when all of its atom's are there, note it."""
        atom, name = collected.atom, self.method.name
        image = quantise(restored)
        self.score(collected, shuffled_name(name) if sample == SHUFFLED else name, image)
        if sample != SHUFFLED:
            if self.settings.samples > 1:
                collected.total = restored if collected.total is None else collected.total + restored
            path = restored_file(self.out, self.settings, atom.image.name, atom.seed, sample)
            self.write(path, image, atom, f"{sample + 1} of {self.settings.samples}")
        collected.left -= 1
        if not collected.left:
            self.finish(collected)

    def score(self, collected: _Collected, method: str, image: Image8) -> None:
        """Measure an image of a method; what a metric cannot take has the value NaN."""
        values = collected.values.setdefault(method, {})
        for metric in self.metrics:
            try:
                value = metric(image, collected.truth)
            except (ValueError, AssertionError, RuntimeError) as error:
                if isinstance(error, NotImplementedError) or "out of memory" in str(error):
                    raise
                value = float("nan")
                self.undefined.setdefault(
                    metric.name, f"{collected.atom.image.name}: {' '.join(str(error).split())[:160]}"
                )
            values.setdefault(metric.name, []).append(value)

    def write(self, path: Path, image: Image8, atom: Atom, which: str) -> None:
        """Write a restored image with what it came from."""
        if self.settings.write:
            facts = {**self.facts, "image": atom.image.name, "seed": atom.seed, "prompt": atom.image.prompt}
            write_restored(path, image, {**facts, "sample": which})

    def finish(self, collected: _Collected) -> None:
        """The baseline and the average of an atom that is complete; then it is noted."""
        atom, samples = collected.atom, self.settings.samples
        # Bicubic upsampling does not depend on the seed: once is enough.
        if self.method.name != self.bicubic.name and atom.seed == self.settings.seeds[0]:
            bicubic = self.bicubic.restore([Task(atom.image, collected.lq, 0)])[0]
            self.score(collected, self.bicubic.name, quantise(bicubic))
        if samples > 1 and collected.total is not None:
            path = mean_file(self.out, self.settings, atom.image.name, atom.seed)
            # Of images that are made already it is read: the average of 8-bit images is another one.
            made = not self.settings.write and path.is_file()
            mean = read_image(path) if made else quantise(collected.total / samples)
            self.write(path, mean, atom, f"mean of {samples}")
            self.score(collected, mean_name(self.method.name, samples), mean)
        entry = Entry(atom.image.name, atom.seed, collected.values, collected.seconds, collected.warm_up)
        if entry.key not in self.finished:
            self.journal.add(entry)
            self.entries.append(entry)

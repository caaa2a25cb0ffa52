"""From what the processes have finished to rows: gathered, each image once, in a fixed order."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from dit4sr.evaluation.benchmarks import Benchmark, Skipped
from dit4sr.evaluation.journal import Entry
from dit4sr.evaluation.measuring import Measured
from dit4sr.evaluation.methods import Bicubic, Method
from dit4sr.evaluation.metrics import Metric, pyiqa_version
from dit4sr.evaluation.processes import Group
from dit4sr.evaluation.restored import Settings, mean_name, shuffled_name
from dit4sr.evaluation.scores import PerImageScore
from dit4sr.evaluation.tables import Row, Statistic, statistic

Values = dict[tuple[str, str], dict[int, float]]
"""(method, metric) → number of the sample → value."""


@dataclass(frozen=True)
class Variation:
    """How much a method's mean over the images changes from seed to seed, or from sample to sample.

    Attributes:
        over: ``seeds`` or ``samples``.
        means: the benchmark's mean of each.
    """

    over: str
    means: tuple[float, ...]

    @property
    def statistic(self) -> Statistic:
        """Mean, deviation and number of the means."""
        return statistic(self.means)


@dataclass(frozen=True)
class Timing:
    """Seconds to restore an image under a seed, all its samples together: a row of timing.csv.

    Attributes:
        warm_up: whether they include the first batch of its size and number in a process, which also loads, compiles
            and tunes.
    """

    image: str
    method: str
    seed: int
    samples: int
    seconds: float
    warm_up: bool


@dataclass(frozen=True)
class Results:
    """All that an evaluation found.

    Attributes:
        rows: by image, method, seed and metric.
        variation: method → metric → see there; of methods that differ between seeds or samples.
        timings: of the method.
        skipped: images that could not be used, by name.
        undefined: metric → (number of images without a value, why the first one has none).
        seconds_per_image: of restoring one sample, without reading, writing and measuring; see
            :func:`seconds_of_a_sample`.
        seconds_with_warm_up: whether that includes a warm-up, for want of images without one.
    """

    rows: list[Row]
    variation: dict[str, dict[str, Variation]]
    timings: list[Timing]
    skipped: list[Skipped]
    undefined: dict[str, tuple[int, str]]
    seconds_per_image: float
    seconds_with_warm_up: bool

    @property
    def images(self) -> list[str]:
        """Names of the images that were measured."""
        return list(dict.fromkeys(row.image for row in self.rows))


def method_names(method: Method, settings: Settings) -> list[str]:
    """The rows of the table: the baseline, the method, its average, its control."""
    names = [] if method.name == Bicubic().name else [Bicubic().name]
    names.append(method.name)
    if settings.samples > 1:
        names.append(mean_name(method.name, settings.samples))
    if settings.shuffled:
        names.append(shuffled_name(method.name))
    return names


def gather(
    benchmark: Benchmark,
    method: Method,
    metrics: Sequence[Metric],
    settings: Settings,
    finished: Iterable[Entry],
    measured: Measured,
    group: Group,
) -> Results:
    """Bring together what all processes have; every process gets all of it.

    Args:
        finished: of earlier runs.
        measured: by this process.
    """
    entries = {entry.key: entry for entry in [*finished, *measured.entries]}
    atoms = [(image, seed) for image in benchmark.images for seed in settings.seeds]
    numbers = {(image.name, seed): number for number, (image, seed) in enumerate(atoms)}
    names = method_names(method, settings)
    scores = {(name, metric.name): PerImageScore() for name in names for metric in metrics}
    for key, entry in sorted(entries.items()):
        for (name, metric), score in scores.items():
            for sample, value in enumerate(entry.values.get(name, {}).get(metric, ())):
                score.add(numbers[key] * settings.samples + sample, value)
    values = {key: score.per_image() for key, score in scores.items()}

    seconds: dict[tuple[str, int], tuple[float, bool]] = {}
    skipped: dict[str, Skipped] = {image.name: image for image in benchmark.skipped}
    reasons: dict[str, str] = {}
    mine = ({e.key: (e.seconds, e.warm_up) for e in entries.values()}, measured.skipped, measured.undefined)
    for times, unread, undefined in group.gather(mine):
        seconds |= times
        skipped |= {s.name: s for s in unread}
        reasons = {**undefined, **reasons}
    rows = _rows([(image.name, seed) for image, seed in atoms], names, metrics, settings, values)
    timings = [
        Timing(name, method.name, seed, settings.units, *seconds[name, seed])
        for name, seed in numbers
        if (name, seed) in seconds
    ]
    return Results(
        rows,
        _variation(names, metrics, settings, values),
        timings,
        sorted(skipped.values(), key=lambda s: s.name),
        _undefined(rows, reasons),
        *seconds_of_a_sample(timings, {image.name: image.size for image in benchmark.images}),
    )


def seconds_of_a_sample(timings: Sequence[Timing], sizes: Mapping[str, tuple[int, int]]) -> tuple[float, bool]:
    """What restoring one sample takes: the median over the images of each size, averaged over all images.

    Images of a process's first batch of their size and number, which also loads, compiles and tunes, are left out,
    where their size has others.

    Args:
        timings: of all images.
        sizes: image → (height, width) of its LR.

    Returns:
        Seconds (0 without any), and whether they include a warm-up, for want of others.
    """
    by_size: dict[tuple[int, int], list[Timing]] = {}
    for timing in timings:
        by_size.setdefault(sizes[timing.image], []).append(timing)
    total, with_warm_up = 0.0, False
    for own in by_size.values():
        settled = [t for t in own if not t.warm_up]
        with_warm_up |= not settled
        total += len(own) * statistics.median(t.seconds / t.samples for t in settled or own)
    return total / max(1, len(timings)), with_warm_up


def _rows(
    atoms: Sequence[tuple[str, int]],
    names: Sequence[str],
    metrics: Sequence[Metric],
    settings: Settings,
    values: Values,
) -> list[Row]:
    by_image: dict[str, list[tuple[int, int]]] = {}
    for number, (image, seed) in enumerate(atoms):
        by_image.setdefault(image, []).append((number, seed))
    version, rows = pyiqa_version(), []
    for image, numbered in by_image.items():
        for name in names:
            for number, seed in numbered:
                for m in metrics:
                    known = values[name, m.name]
                    at = range(number * settings.samples, (number + 1) * settings.samples)
                    if not (found := [known[k] for k in at if k in known]):
                        continue
                    over = statistic(found)
                    rows.append(
                        Row(
                            image,
                            name,
                            m.name,
                            over.mean,
                            m.protocol,
                            m.channel,
                            m.border,
                            version,
                            seed,
                            variant=m.variant,
                            data_range=m.data_range,
                            samples=len(found),
                            std=None if math.isnan(over.std) else over.std,
                        )
                    )
    return rows


def _variation(
    names: Sequence[str], metrics: Sequence[Metric], settings: Settings, values: Values
) -> dict[str, dict[str, Variation]]:
    seeds, samples = len(settings.seeds), settings.samples
    found: dict[str, dict[str, Variation]] = {}
    for name in names:
        for m in metrics:
            known = values[name, m.name]
            # A sample's number is ((image · seeds) + seed) · samples + sample.
            seed_of = {number: number // samples % seeds for number in known}
            if seeds > 1 and len(set(seed_of.values())) > 1:
                parts = [[v for n, v in known.items() if seed_of[n] == k] for k in range(seeds)]
                over = "seeds"
            elif samples > 1 and len({n % samples for n in known}) > 1:
                parts = [[v for n, v in known.items() if n % samples == k] for k in range(samples)]
                over = "samples"
            else:
                continue
            means = tuple(statistic(part).mean for part in parts)
            found.setdefault(name, {})[m.name] = Variation(over, means)
    return found


def _undefined(rows: Sequence[Row], reasons: dict[str, str]) -> dict[str, tuple[int, str]]:
    without: dict[str, set[str]] = {}
    for row in rows:
        if math.isnan(row.value):
            without.setdefault(row.metric, set()).add(row.image)
    unsaid = "not defined for them"
    return {metric: (len(images), reasons.get(metric, unsaid)) for metric, images in without.items()}

"""What a report says of a benchmark: columns, measured rows and reported ones."""

from __future__ import annotations

from dataclasses import dataclass, field

from dit4sr.evaluation.reports.resampling import Interval
from dit4sr.evaluation.reports.runs import Run
from dit4sr.evaluation.tables import Column


@dataclass(frozen=True)
class Measure:
    """What a column holds: everything that its numbers depend on."""

    metric: str
    protocol: str
    channel: str
    border: int
    variant: str
    data_range: str
    pyiqa: str


@dataclass(frozen=True)
class Spread:
    """Deviation (n − 1) of the benchmark's mean over that many seeds or samples."""

    std: float
    over: str
    count: int


@dataclass(frozen=True)
class Cell:
    """A measured mean, over ``n`` images."""

    value: float
    n: int
    interval: Interval | None = None
    spread: Spread | None = None


@dataclass(frozen=True)
class Comparison:
    """Mean difference to the reference over the common images; p adjusted for the column's comparisons (Holm)."""

    difference: float
    interval: Interval
    n: int
    p: float
    adjusted: float


@dataclass
class Entry:
    """A measured row.

    Attributes:
        method: its name in the runs' rows.
        cells: measure → mean.
        places: measure → 1 for the best, 2 for the second best.
        compared: measure → difference to the reference; empty for the reference itself.
        seeds: of training or sampling; None where nothing is random.
        seconds, memory: of restoring an image once (s, without warm-up, see
            :func:`dit4sr.evaluation.results.seconds_of_a_sample`), at the peak (bytes); None where not measured.
        runs: where it was measured.
    """

    label: str
    method: str
    ranked: bool
    runs: list[Run]
    cells: dict[Measure, Cell] = field(default_factory=dict)
    places: dict[Measure, int] = field(default_factory=dict)
    compared: dict[Measure, Comparison] = field(default_factory=dict)
    seeds: int | None = None
    seconds: float | None = None
    memory: int | None = None


@dataclass(frozen=True)
class Quoted:
    """A reported row: values as printed, and the notes that they need."""

    method: str
    source: str
    values: dict[Measure, str]
    notes: tuple[str, ...]
    seconds: str | None


@dataclass(frozen=True)
class BenchmarkTable:
    """All of one benchmark."""

    name: str
    upscale: float
    measures: dict[Measure, Column]
    entries: list[Entry]
    quoted: list[Quoted]
    reference: str | None
    notes: list[str]

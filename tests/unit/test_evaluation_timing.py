"""Seconds an image: what a warm-up costs is no part of them, and a single slow image moves them little."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fake_clock import Clock
from tiny_checkpoint import picture, save, write_pairs

from dit4sr.evaluation import measuring
from dit4sr.evaluation.benchmarks import load_benchmark
from dit4sr.evaluation.journal import Entry, Journal, prepare, read
from dit4sr.evaluation.measuring import measure
from dit4sr.evaluation.methods import ImageFloat, Task
from dit4sr.evaluation.processes import Group
from dit4sr.evaluation.restored import Settings
from dit4sr.evaluation.results import Results, Timing, gather, seconds_of_a_sample

SIZES = {"a": (16, 16), "b": (16, 16), "c": (16, 16), "d": (16, 16), "e": (8, 8)}


def timed(image: str, seconds: float, *, warm_up: bool = False, samples: int = 1) -> Timing:
    return Timing(image, "ours", 0, samples, seconds, warm_up)


def test_warm_ups_are_left_out_where_there_are_other_images_of_the_size() -> None:
    settled = [timed("b", 2.0), timed("c", 2.2), timed("d", 9.0)]
    assert seconds_of_a_sample([timed("a", 300.0, warm_up=True), *settled], SIZES) == (2.2, False)
    assert seconds_of_a_sample([*settled, timed("e", 8.0, warm_up=True)], SIZES) == (pytest.approx(3.65), True)
    assert seconds_of_a_sample([timed("b", 6.0, samples=3)], SIZES) == (2.0, False)
    assert seconds_of_a_sample([], SIZES) == (0.0, False)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """What the evaluation reads the time from."""
    clock = Clock()
    monkeypatch.setattr(measuring, "time", clock)
    return clock


@dataclass
class Compiling:
    """A method that is slow at each size and number of images that it has not seen."""

    clock: Clock
    seen: set[tuple[int, ...]] = field(default_factory=set)
    name: str = "ours"
    samples: bool = True
    reads_lq: bool = True
    settings: dict[str, Any] = field(default_factory=dict)

    def restore(self, tasks: Sequence[Task]) -> list[ImageFloat]:
        size = (len(tasks), *tasks[0].lq.shape)
        self.clock.now += 0.5 if size in self.seen else 300
        self.seen.add(size)
        return [np.zeros((*task.image.target, 3), np.float32) for task in tasks]


def evaluated(folder: Path, out: Path, clock: Clock, batch_size: int, resumed: bool = False) -> Results:
    (out / "journal").mkdir(parents=True, exist_ok=True)
    prepare(out / "journal", {"n": 1}, keep=True)
    config = {"name": "mine", "lq": str(folder / "lq"), "hq": str(folder / "hq"), "prompts": None}
    benchmark = load_benchmark({**config, "upscale": 4, "count": None, "source": "the moon"})
    settings, method, group = Settings((0,), batch_size=batch_size, write=False), Compiling(clock), Group()
    journal = Journal(out / "journal", 0)
    finished = read(out / "journal") if resumed else {}
    try:
        measured = measure(benchmark, method, [], out, settings, group=group, journal=journal, finished=finished)
    finally:
        journal.close()
    return gather(benchmark, method, [], settings, finished.values(), measured, group)


def test_an_evaluation_knows_which_batches_warmed_up_and_so_does_its_journal(tmp_path: Path, clock: Clock) -> None:
    write_pairs(tmp_path, ["a", "b", "c", "d", "e"])
    found = evaluated(tmp_path, tmp_path / "out", clock, batch_size=2)
    # Batches of 2, 2 and 1: the first of either number is slow.
    assert [t.warm_up for t in found.timings] == [True, True, False, False, True]
    assert found.seconds_per_image == 0.25 and not found.seconds_with_warm_up
    entries = read(tmp_path / "out" / "journal")
    assert [entries[name, 0].warm_up for name in "abcde"] == [True, True, False, False, True]
    again = evaluated(tmp_path, tmp_path / "out", clock, batch_size=2, resumed=True)
    assert (again.timings, again.seconds_per_image) == (found.timings, found.seconds_per_image)


def test_where_every_image_warmed_up_that_is_said(tmp_path: Path, clock: Clock) -> None:
    write_pairs(tmp_path, ["a"])
    save(tmp_path / "lq" / "wide.png", picture(16, 20, 0))
    save(tmp_path / "hq" / "wide.png", picture(64, 80, 0))
    found = evaluated(tmp_path, tmp_path / "out", clock, batch_size=1)
    assert found.seconds_with_warm_up and found.seconds_per_image == 300


def test_journals_of_before_are_still_read() -> None:
    assert not Entry(image="a", seed=0, values={}, seconds=1.0).warm_up

"""Per-image scores: exact, deduplicated, and the same from any number of processes."""

from __future__ import annotations

import math
import multiprocessing
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torchmetrics
from tiny_checkpoint import picture

from dit4sr.evaluation.metrics import build_metrics
from dit4sr.evaluation.scores import PerImageScore

VALUES = {0: 0.1, 1: 1e16, 2: 1.0, 3: -1e16, 4: 0.3, 5: math.nan}


def test_values_are_those_of_the_metric_and_their_mean() -> None:
    (metric,) = build_metrics({"names": ["psnr"], "protocol": "rgb", "border": None}).metrics
    score = PerImageScore(metric)
    assert isinstance(score, torchmetrics.Metric)
    images, truths = [picture(20, 24, s) for s in range(3)], [picture(20, 24, s + 9) for s in range(3)]
    score.update(images[:2], truths[:2], [4, 0])
    score.update(images[2:], truths[2:], [2])
    expected = {n: metric(a, b) for n, a, b in zip((4, 0, 2), images, truths, strict=True)}
    assert score.per_image() == dict(sorted(expected.items()))
    assert score.compute().item() == pytest.approx(math.fsum(expected.values()) / 3, abs=0)
    score.reset()
    assert score.per_image() == {}
    assert math.isnan(score.compute())


def test_an_image_that_is_seen_twice_counts_once_and_the_order_does_not_matter() -> None:
    forward, backward = PerImageScore(), PerImageScore()
    for number in VALUES:
        forward.add(number, VALUES[number])
    for number in [*reversed(VALUES), 2, 2, 0]:
        backward.add(number, VALUES[number])
    # A plain sum of these loses the small ones; the exact mean of the five defined values is 1.4 / 5.
    assert forward.compute().item() == backward.compute().item() == 1.4 / 5


def gather(rank: int, size: int, meeting: str, results: Any) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=meeting, rank=rank, world_size=size)
    score, empty = PerImageScore(), PerImageScore()
    # Unequal shares that overlap, and a process without any.
    for number in ([0, 1, 2, 3], [3, 4, 5], [])[rank]:
        score.add(number, VALUES[number])
    results.put((rank, score.per_image(), empty.per_image(), len(score.index)))
    dist.barrier()
    dist.destroy_process_group()


def test_three_processes_have_what_one_has(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    results = context.Queue()
    processes = [context.Process(target=gather, args=(r, 3, f"file://{tmp_path / 'meet'}", results)) for r in range(3)]
    for process in processes:
        process.start()
    found = [results.get(timeout=600) for _ in processes]
    for process in processes:
        process.join()
    for rank, values, empty, kept in found:
        assert list(values) == list(VALUES)
        assert {k: v for k, v in values.items() if not math.isnan(v)} == {k: v for k, v in VALUES.items() if k != 5}
        assert empty == {}
        assert kept == (4, 3, 1)[rank]  # the process's own state is as it was

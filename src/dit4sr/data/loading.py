"""Training batches from worker processes: the same batches in the same order for any number of workers."""

from __future__ import annotations

import itertools
import multiprocessing
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from dit4sr.data.augmentation import Augmentation
from dit4sr.data.degradations import DegradationPreset
from dit4sr.data.samples import make_sample
from dit4sr.data.stream import ShardReader, Tally, numbered_samples
from dit4sr.errors import UserError

Batch = dict[str, Any]

# A fork of a process that already has threads (CUDA, OpenMP, loggers) can inherit a lock that nobody will
# ever release. The fork server is a clean process that has imported this module once and forks from there.
START_METHOD = "forkserver" if "forkserver" in multiprocessing.get_all_start_methods() else "spawn"


@dataclass(frozen=True)
class LoaderSettings:
    """All that the training batches follow from. ``batch_size`` is global, over all ranks.

    Raises:
        UserError: ranks × workers does not divide the lanes, or the ranks do not divide the batch.
    """

    shards: tuple[Path, ...]
    preset: DegradationPreset
    augmentation: Augmentation
    seed: int
    crop: int
    batch_size: int
    prompt_drop: float
    lanes: int = 16
    shuffle_buffer: int = 64
    max_bad_share: float = 0.05
    workers: int = 0
    rank: int = 0
    world_size: int = 1
    start: int = 0

    def __post_init__(self) -> None:
        for name, low in {"lanes": 1, "shuffle_buffer": 1, "batch_size": 1, "workers": 0, "start": 0}.items():
            if getattr(self, name) < low:
                raise UserError(f"data.{name}={getattr(self, name)} must be at least {low}.")
        if self.crop < 4 or self.crop % 4:
            raise UserError(f"backbone.crop={self.crop} must be a positive multiple of 4.")
        if self.batch_size % self.world_size:
            raise UserError(
                f"data.batch_size={self.batch_size} is the batch of all {self.world_size} ranks together: "
                f"make it a multiple of {self.world_size}."
            )
        if self.lanes % (self.world_size * self.readers):
            fitting = [n for n in range(1, self.lanes + 1) if self.lanes % (n * self.world_size) == 0]
            workers = f"data.workers may be {', '.join(map(str, [0, *fitting]))}" if fitting else "no number fits"
            raise UserError(
                f"{self.world_size} rank(s) x {self.readers} worker(s) must divide data.lanes={self.lanes}: "
                f"{workers}, or set data.lanes to a multiple of {self.world_size * self.readers} "
                "(which changes the stream)."
            )

    @property
    def readers(self) -> int:
        """Workers, or 1 where the main process reads."""
        return max(1, self.workers)

    @property
    def local_batch(self) -> int:
        """Samples in a batch of this rank."""
        return self.batch_size // self.world_size

    @property
    def piece(self) -> int:
        """Samples that a worker hands over at once: its share of a local batch if that is whole, else one."""
        return self.local_batch // self.readers if self.local_batch % self.readers == 0 else 1

    def numbers(self, worker: int) -> Iterator[int]:
        """Yield the numbers of the samples of one worker: every readers-th of this rank's from ``start`` on.

        The rank's are those with i mod world_size = rank. Workers take turns, and the one with the first
        number is always worker 0, whose piece the DataLoader delivers first.
        """
        first = self.start + (self.rank - self.start) % self.world_size
        return itertools.count(first + self.world_size * worker, self.world_size * self.readers)


class TrainingPieces(IterableDataset):
    """Stacked pieces of the local batches, endless; run by each worker for its own numbers."""

    def __init__(self, settings: LoaderSettings) -> None:
        self.settings = settings

    def __iter__(self) -> Iterator[Batch | UserError]:
        s = self.settings
        info = get_worker_info()
        worker = info.id if info else 0
        samples = numbered_samples(
            ShardReader(s.shards),
            s.numbers(worker),
            lambda raw, i: make_sample(
                raw,
                seed=s.seed,
                index=i,
                crop=s.crop,
                preset=s.preset,
                augmentation=s.augmentation,
                prompt_drop=s.prompt_drop,
            ),
            lanes=s.lanes,
            seed=s.seed,
            shuffle_buffer=s.shuffle_buffer,
            tally=Tally(s.max_bad_share, lambda line: print(f"warning: {line}", file=sys.stderr)),
        )
        try:
            while True:
                yield _stack(list(itertools.islice(samples, s.piece)))
        except UserError as error:
            yield error  # an exception raised here would reach the user wrapped in a worker's traceback


def _stack(samples: list[dict[str, Any]]) -> Batch:
    return {
        "index": torch.tensor([sample["index"] for sample in samples]),
        "hq": torch.from_numpy(np.stack([sample["hq"] for sample in samples])),
        "lq": torch.from_numpy(np.stack([sample["lq"] for sample in samples])),
        "prompt": [sample["prompt"] for sample in samples],
    }


def _interleave(pieces: list[Batch]) -> Batch:
    """Sample t of piece w becomes sample t·W + w of the batch, W = len(pieces)."""
    if len(pieces) == 1:
        return pieces[0]
    batch: Batch = {
        key: torch.stack([piece[key] for piece in pieces], dim=1).flatten(0, 1) for key in ("index", "hq", "lq")
    }
    batch["prompt"] = [prompt for row in zip(*(piece["prompt"] for piece in pieces), strict=True) for prompt in row]
    return batch


def _one_thread(_worker: int) -> None:
    cv2.setNumThreads(1)
    torch.set_num_threads(1)


class TrainingBatches:
    """Endless local batches of one rank, beginning at global sample ``settings.start``.

    A batch, in increasing order of the index: index int64 (B,), hq uint8 (B, 3, H, W), lq uint8
    (B, 3, H/4, W/4), prompt a list of B str. Iterating again begins again.
    """

    def __init__(self, settings: LoaderSettings) -> None:
        self.settings = settings

    def __iter__(self) -> Iterator[Batch]:
        s = self.settings
        pieces = iter(self._loader())
        per_batch = s.local_batch // s.piece
        while True:
            batch: list[Batch] = []
            for piece in itertools.islice(pieces, per_batch):
                if isinstance(piece, UserError):
                    raise piece
                batch.append(piece)
            yield _interleave(batch)

    def _loader(self) -> DataLoader[Any]:
        s = self.settings
        if s.workers == 0:
            return DataLoader(TrainingPieces(s), batch_size=None)
        context = multiprocessing.get_context(START_METHOD)
        if START_METHOD == "forkserver":
            context.set_forkserver_preload([__name__])
        batches_ahead = 4
        return DataLoader(
            TrainingPieces(s),
            batch_size=None,
            num_workers=s.workers,
            prefetch_factor=max(2, batches_ahead * s.local_batch // (s.piece * s.workers)),
            worker_init_fn=_one_thread,
            multiprocessing_context=context,
        )

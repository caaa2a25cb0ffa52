"""Training batches from worker processes: the same batches in the same order for any number of workers."""

from __future__ import annotations

import functools
import itertools
import multiprocessing
import os
import sys
import time
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

import cv2
import numpy as np
import torch
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from dit4sr.data.augmentation import Augmentation
from dit4sr.data.degradations import DegradationPreset
from dit4sr.data.reader import RawSample, ShardReader
from dit4sr.data.remote import RemoteSettings, RemoteStore
from dit4sr.data.samples import SCALE, make_sample
from dit4sr.data.sources import ENGINES, ORDERS, SourceSettings
from dit4sr.data.stream import Feed, numbered_samples
from dit4sr.data.tally import Tally
from dit4sr.errors import UserError
from dit4sr.helper_processes import heed_the_run_alone, start_fork_server

Batch = dict[str, Any]
T = TypeVar("T")

LISTS = ("prompt", "embedding")
"""What a batch holds as a list with one item a sample; all else is a tensor."""

# A fork of a process that already has threads (CUDA, OpenMP, loggers) can inherit a lock that nobody will
# ever release. The fork server is a clean process that has imported this module once and forks from there.
START_METHOD = "forkserver" if "forkserver" in multiprocessing.get_all_start_methods() else "spawn"


@dataclass(frozen=True)
class LoaderSettings:
    """All that the training batches follow from. ``batch_size`` is global, over all ranks.

    Raises:
        UserError: ranks × workers does not divide the lanes, the ranks do not divide the batch, or a value is
            out of its range.
    """

    sources: tuple[SourceSettings, ...]
    preset: DegradationPreset
    augmentation: Augmentation
    seed: int
    crop: int
    batch_size: int
    prompt_drop: float
    lanes: int = 16
    shuffle_buffer: int = 64
    order: str = "shuffled"
    engine: str = "worker"
    scale: int = SCALE
    latent_scale: int = 8
    max_bad_share: float = 0.05
    remote: RemoteSettings | None = None
    workers: int = 0
    rank: int = 0
    world_size: int = 1
    start: int = 0

    def __post_init__(self) -> None:
        for name, low in {"lanes": 1, "shuffle_buffer": 1, "batch_size": 1, "workers": 0, "start": 0}.items():
            if getattr(self, name) < low:
                raise UserError(f"data.{name}={getattr(self, name)} must be at least {low}.")
        for name, known in {"order": ORDERS, "engine": ENGINES}.items():
            if getattr(self, name) not in known:
                raise UserError(f"data.{name}={getattr(self, name)}: choose one of {', '.join(known)}.")
        if not isinstance(self.max_bad_share, int | float) or not 0 <= self.max_bad_share <= 1:
            raise UserError(f"data.max_bad_share={self.max_bad_share} must be a share from 0 to 1.")
        if self.scale < 1:
            raise UserError(f"data.scale={self.scale} must be at least 1.")
        if self.crop < self.scale or self.crop % self.scale:
            raise UserError(f"backbone.crop={self.crop} must be a positive multiple of {self.scale}.")
        if self.engine == "device" and any(source.kind != "synthetic" for source in self.sources):
            raise UserError("data.engine=device degrades photos; pairs have nothing to degrade: leave it at worker.")
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

        def make(raw: RawSample, i: int) -> dict[str, Any]:
            return make_sample(
                raw,
                seed=s.seed,
                index=i,
                crop=s.crop,
                preset=s.preset,
                augmentation=s.augmentation,
                prompt_drop=s.prompt_drop,
                engine=s.engine,
                scale=s.scale,
                latent_scale=s.latent_scale,
            )

        try:
            samples = numbered_samples(
                open_feeds(s),
                s.numbers(worker),
                make,
                lanes=s.lanes,
                seed=s.seed,
                shuffle_buffer=s.shuffle_buffer,
                order=s.order,
            )
            made = (each.sample | {"source": each.source, "skipped": each.skipped} for each in samples)
            while True:
                yield _stack(list(itertools.islice(made, s.piece)))
        except UserError as error:
            yield error  # an exception raised here would reach the user wrapped in a worker's traceback


def warn(line: str) -> None:
    """Tell the user of something that training goes on after."""
    print(f"warning: {line}", file=sys.stderr, flush=True)


def open_feeds(settings: LoaderSettings) -> list[Feed]:
    """Open the sources for reading, in the process that reads."""
    store = RemoteStore(settings.remote, warn) if settings.remote else None
    feeds = []
    for source in settings.sources:
        tally = Tally(settings.max_bad_share, warn)
        if source.pairs:
            from dit4sr.data.paired import PairReader

            feeds.append(Feed(PairReader(source.pairs), tally, source.weight))
        else:
            reader = ShardReader(source.shards, kind=source.kind, prompts=source.prompts, store=store, tally=tally)
            feeds.append(Feed(reader, tally, source.weight))
    return feeds


def _stack(samples: list[dict[str, Any]]) -> Batch:
    batch: Batch = {}
    for key, value in samples[0].items():
        values = [sample[key] for sample in samples]
        if key in LISTS:
            batch[key] = values
        elif isinstance(value, np.ndarray):
            # Images arrive as transposed views: without a layout of their own the batch's would depend on the number of
            # workers, and with it the order in which a convolution rounds.
            batch[key] = torch.from_numpy(np.ascontiguousarray(np.stack(values)))
        else:
            batch[key] = torch.tensor(values)
    return batch


def _interleave(pieces: list[Batch]) -> Batch:
    """Sample t of piece w becomes sample t·W + w of the batch, W = len(pieces)."""
    if len(pieces) == 1:
        return pieces[0]
    return {
        key: list(itertools.chain.from_iterable(zip(*(piece[key] for piece in pieces), strict=True)))
        if key in LISTS
        else torch.stack([piece[key] for piece in pieces], dim=1).flatten(0, 1)
        for key in pieces[0]
    }


def _begin_worker(_worker: int, run: int) -> None:
    if START_METHOD == "forkserver":
        heed_the_run_alone(run)
    cv2.setNumThreads(1)
    torch.set_num_threads(1)


def noticing_death(pieces: Iterator[T]) -> Iterator[T]:
    """The same pieces; a worker process that was killed becomes a line.

    Raises:
        UserError: a worker has ended by a signal.
    """
    while True:
        try:
            piece = next(pieces)
        except StopIteration:
            return
        except (RuntimeError, OSError, EOFError) as error:
            # Found dead, or while it handed over a piece; what a worker itself raised begins with "Caught".
            died = not isinstance(error, RuntimeError) or str(error).startswith("DataLoader worker")
            if not died or str(error).startswith("Caught"):
                raise
            raise UserError(
                f"a data worker has ended ({str(error).splitlines()[0] if str(error) else type(error).__name__}). The "
                "system kills one where memory runs out: lower data.workers or data.shuffle_buffer; the same command "
                "goes on from the last checkpoint"
            ) from error
        yield piece


class TrainingBatches:
    """Endless local batches of one rank, beginning at global sample ``settings.start``.

    A batch, in increasing order of the index: index int64 (B,); prompt a list of B str; embedding a list of B
    dicts of tensors or None; source and skipped int64 (B,) (see `stream.Numbered`); and, stacked, what
    `make_sample` returns: hq and lq, or patch, or hq_latent and lq_latent. Iterating again begins again.

    ``waited`` is the time in seconds for which batches have been waited for.
    """

    def __init__(self, settings: LoaderSettings) -> None:
        self.settings = settings
        self.waited = 0.0

    def __iter__(self) -> Iterator[Batch]:
        s = self.settings
        pieces = iter(self._loader())
        per_batch = s.local_batch // s.piece
        try:
            while True:
                batch: list[Batch] = []
                began = time.perf_counter()
                for piece in itertools.islice(noticing_death(pieces), per_batch):
                    if isinstance(piece, UserError):
                        raise piece
                    batch.append(piece)
                whole = _interleave(batch)
                self.waited += time.perf_counter() - began
                yield whole
        finally:
            # Workers that an error leaves behind would wait for work, and this process at its end for them.
            getattr(pieces, "_shutdown_workers", lambda: None)()

    def _loader(self) -> DataLoader[Any]:
        s = self.settings
        if s.workers == 0:
            return DataLoader(TrainingPieces(s), batch_size=None)
        if START_METHOD == "forkserver":
            context = start_fork_server([__name__])
        else:
            context = multiprocessing.get_context(START_METHOD)
        # Torch counts the cores; how many workers there are is the config's choice, and they wait for disks as well.
        warnings.filterwarnings("ignore", message="This DataLoader will create", category=UserWarning)
        batches_ahead = 4
        return DataLoader(
            TrainingPieces(s),
            batch_size=None,
            num_workers=s.workers,
            prefetch_factor=max(2, batches_ahead * s.local_batch // (s.piece * s.workers)),
            worker_init_fn=functools.partial(_begin_worker, run=os.getpid()),
            multiprocessing_context=context,
        )

"""Photos restored in batches of one size; a bad one is noted, and the others go on."""

from __future__ import annotations

import errno
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from PIL import Image
from tqdm import tqdm

from dit4sr.data.images import UnreadableImage
from dit4sr.restoration.finding import Job
from dit4sr.restoration.noise import noise_seed
from dit4sr.restoration.reading import Photograph, read_photograph
from dit4sr.restoration.restorer import Restorer
from dit4sr.restoration.results import write_result
from dit4sr.restoration.transparency import fill_transparent, with_alpha

LEAST_SIDE = 16
"""Pixels of a photo's shorter side."""

WAITING = 4
"""So many batches of photos are read at most before one that is not full is restored."""

OF_ONE_FILE = {errno.EISDIR, errno.ENOTDIR, errno.ENAMETOOLONG, errno.EEXIST, errno.EILSEQ, errno.EINVAL, errno.ELOOP}
"""Reasons why one result cannot be written that say nothing of the others."""

Prompts = Callable[[Sequence[Job], Sequence[np.ndarray]], list[str]]
"""(jobs, their photos, uint8 (h, w, 3)) → a prompt each."""


@dataclass(frozen=True)
class Failed:
    """A photo that could not be restored, and why."""

    name: str
    reason: str


class Unwritable(Exception):  # noqa: N818
    """No result can be written any more; the message is the reason."""


@dataclass
class Outcome:
    """What became of the photos so far.

    Attributes:
        done: number of results written.
        failed: the photos without one.
    """

    done: int = 0
    failed: list[Failed] = field(default_factory=list)


@dataclass(frozen=True)
class Limits:
    """How photos are put together.

    Attributes:
        batch_size: photos of one size that are restored at once.
        max_pixels: of a result; more is refused.
    """

    batch_size: int
    max_pixels: float


@dataclass(frozen=True, eq=False)
class Item:
    """A job and its photo, read."""

    job: Job
    photo: Photograph


def restore_all(
    jobs: Iterable[Job],
    restorer: Restorer,
    prompts: Prompts,
    settings: Mapping[str, Any],
    limits: Limits,
    outcome: Outcome,
) -> None:
    """Restore photos and write the results; ``outcome`` is kept up to date, for whoever is interrupted.

    A photo's noise follows from the seed and its name alone: the batch it is in changes its result by rounding.

    Args:
        jobs: the photos.
        restorer: what restores them.
        prompts: see :data:`Prompts`.
        settings: what the results' metadata say of all photos; ``upscale`` and ``seed`` are taken from them.
        limits: see :class:`Limits`.
        outcome: what became of them.

    Raises:
        Unwritable: the disk is full, or the folder cannot be written to.
    """
    jobs = list(jobs)
    waiting: dict[tuple[int, ...], list[Item]] = {}
    interval = 0.2 if sys.stderr.isatty() else 10
    with tqdm(total=len(jobs), desc="restoring", unit="photo", mininterval=interval) as bar:

        def restore(size: tuple[int, ...]) -> None:
            items = waiting.pop(size)
            restore_together(items, restorer, prompts, settings, outcome)
            bar.update(len(items))

        for job in jobs:
            try:
                photo = read_fitting(job, settings["upscale"], limits.max_pixels)
            except UnreadableImage as error:
                outcome.failed.append(Failed(job.shown, str(error)))
                bar.update()
                continue
            size = photo.rgb.shape
            waiting.setdefault(size, []).append(Item(job, photo))
            if len(waiting[size]) == limits.batch_size:
                restore(size)
            elif sum(map(len, waiting.values())) >= WAITING * limits.batch_size:
                restore(max(waiting, key=lambda size: len(waiting[size])))
        while waiting:
            restore(next(iter(waiting)))


def read_fitting(job: Job, upscale: float, max_pixels: float) -> Photograph:
    """Read a photo that can be restored.

    Raises:
        UnreadableImage: it cannot be read, is too small, or its result would be too large.
    """
    photo = read_photograph(job.photo)
    height, width = photo.rgb.shape[:2]
    if min(height, width) < LEAST_SIDE:
        raise UnreadableImage(f"{width}×{height} is too small: both sides need {LEAST_SIDE} pixels or more")
    pixels = round(height * upscale) * round(width * upscale)
    if pixels > max_pixels:
        raise UnreadableImage(
            f"{width}×{height} enlarged {upscale:g} times has {pixels / 1e6:.3g} megapixels: lower upscale, "
            f"or raise max_megapixels={max_pixels / 1e6:g}"
        )
    return photo


def restore_together(
    items: Sequence[Item], restorer: Restorer, prompts: Prompts, settings: Mapping[str, Any], outcome: Outcome
) -> None:
    """Restore photos of one size and write their results; where memory does not suffice, one by one.

    Raises:
        Unwritable: see :func:`restore_all`.
    """
    jobs = [item.job for item in items]
    lqs = [visible(item.photo) for item in items]
    try:
        texts = prompts(jobs, lqs)
        seeds = [noise_seed(settings["seed"], job.name) for job in jobs]
        restored = restorer.restore_batch(lqs, texts, seeds, settings["upscale"])
    except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        if restorer.device.type == "cuda":
            torch.cuda.empty_cache()
        if len(items) == 1:
            reason = "not enough memory: lower sampler.tile_batch or upscale, or use device=cpu"
            outcome.failed.append(Failed(jobs[0].shown, reason))
            return
        restored = None
    if restored is None:
        for item in items:
            restore_together([item], restorer, prompts, settings, outcome)
        return
    for item, text, pixels in zip(items, texts, restored, strict=True):
        try:
            write_result(item.job.result, finished(pixels, item.photo), facts_of(item.job, text, settings))
        except OSError as error:
            reason = f"{item.job.result} cannot be written: {error.strerror or error}"
            if error.errno not in OF_ONE_FILE:
                raise Unwritable(reason) from error
            outcome.failed.append(Failed(item.job.shown, reason))
        else:
            outcome.done += 1


def visible(photo: Photograph) -> np.ndarray:
    """What is restored of a photo, uint8 (h, w, 3)."""
    return photo.rgb if photo.alpha is None else fill_transparent(photo.rgb, photo.alpha)


def finished(restored: np.ndarray, photo: Photograph) -> np.ndarray:
    """A restored photo as it is written: a grey one neutral, with its transparency if it has any.

    Args:
        restored: uint8 (H, W, 3).
        photo: what it was.

    Returns:
        uint8 (H, W, 3), or (H, W, 4) with alpha.
    """
    if photo.is_grey:
        luma = np.asarray(Image.fromarray(restored).convert("L"))
        restored = np.dstack([luma] * 3)
    return restored if photo.alpha is None else with_alpha(restored, photo.alpha)


def facts_of(job: Job, prompt: str, settings: Mapping[str, Any]) -> dict[str, Any]:
    """What a result's metadata say."""
    return {**settings, "photo": job.name, "prompt": prompt}


def is_out_of_memory(error: BaseException) -> bool:
    """Whether a device, or the CPU, had too little memory."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or "allocate memory" in str(error)

"""Whether two images show the same thing, judged by thumbnails: what equal file names cannot tell.

A restored or HR image, made small, must look like the LR image made small. Luma thumbnails of both are correlated;
over the real test sets of this field that is 0.95 or more, and a wrong partner is far below.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from dit4sr.data.images import DECODING_ERRORS, FORMATS, Image8

SIDE = 24
"""Pixels of a thumbnail: noise and blur are averaged away, the layout stays."""

LEAST_CORRELATION = 0.6
CLEARLY_BETTER = 0.25
"""A partner that correlates this much more is taken for the right one."""

FLAT = 2.0
"""Grey levels: below this standard deviation there is nothing to compare."""

MOST = 100
"""Pairs that are compared before an evaluation begins; every pair is, again, when it is measured."""

LEAST_SMOOTHNESS = 0.25
"""Correlation of neighbouring pixels of a thumbnail: below it, as in noise, there is no layout to compare."""

Thumbnail = NDArray[np.float64]


def thumbnail(image: Image8 | Path, side: int = SIDE) -> Thumbnail | None:
    """Luma of an image made small: (side, side), mean 0, norm 1; None for one that is flat, noise, or unreadable."""
    try:
        if isinstance(image, Path):
            with Image.open(image, formats=FORMATS) as opened:
                small = _shrink(ImageOps.exif_transpose(opened), side)
        else:
            small = _shrink(Image.fromarray(image), side)
    except DECODING_ERRORS:
        return None
    values = np.asarray(small, np.float64)
    if values.std() < FLAT:
        return None
    values = values - values.mean()
    values /= np.linalg.norm(values)
    neighbours = (values[1:] * values[:-1]).sum() + (values[:, 1:] * values[:, :-1]).sum()
    return values if neighbours / 2 > LEAST_SMOOTHNESS else None


def same_content(lq: Image8, other: Image8) -> bool:
    """Whether a larger image may show what the LR image shows; also where it cannot be told."""
    side = min(SIDE, *lq.shape[:2])
    own = correlation(thumbnail(lq, side), thumbnail(other, side))
    return own is None or own >= LEAST_CORRELATION


def correlation(a: Thumbnail | None, b: Thumbnail | None) -> float | None:
    """Pearson's correlation of two thumbnails, or None where one cannot be judged."""
    return None if a is None or b is None else float((a * b).sum())


def mispaired(
    names: Sequence[str],
    lqs: Sequence[Path],
    others: Sequence[Path],
    sizes: Sequence[tuple[int, int]],
    most: int = MOST,
) -> list[str]:
    """Which images have a partner that shows something else, each with what tells so.

    A pair is refused where its correlation is below 0.6, or where another partner in the folder correlates
    clearly better, as in a folder whose names are shifted by one.

    Args:
        names, lqs, others, sizes: of the same length: the images, their LR files, their HR or restored files, and
            (height, width) of the LR images.
        most: pairs to look at, spread evenly.
    """
    step = max(1, -(-len(names) // most))
    chosen = range(0, len(names), step)
    side = min([SIDE, *(length for i in chosen for length in sizes[i])])
    small = [thumbnail(lqs[i], side) for i in chosen]
    large = [thumbnail(others[i], side) for i in chosen]
    wrong = []
    for k, i in enumerate(chosen):
        own = correlation(small[k], large[k])
        if own is None:
            continue
        rest = [(c, j) for j, other in enumerate(large) if j != k and (c := correlation(small[k], other)) is not None]
        best, at = max(rest, default=(-1.0, k))
        if best > own + CLEARLY_BETTER:
            wrong.append(f"{names[i]} (it shows what {others[chosen[at]].name} shows)")
        elif own < LEAST_CORRELATION:
            wrong.append(f"{names[i]} (correlation {own:.2f})")
    return wrong


def _shrink(image: Image.Image, side: int) -> Image.Image:
    return image.convert("L").resize((side, side), Image.Resampling.BOX)

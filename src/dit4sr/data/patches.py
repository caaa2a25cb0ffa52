"""What is cut from a photo: training patches by a stated policy, and centre crops for a benchmark."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import product

import cv2
import numpy as np

from dit4sr.data.images import Image8
from dit4sr.data.photos import Photo
from dit4sr.data.shards import ShardSample
from dit4sr.randomness import uniform

Place = tuple[int, int, int]
"""(number of the scale, top, left)."""


def patch_count(photo: Photo, patches_per_photo: int) -> int:
    """Random patches of a photo: its weight times ``patches_per_photo``, whatever its size."""
    return max(1, round(photo.weight * patches_per_photo))


def fitting_scales(photo: Photo, patch: int, scales: Sequence[float]) -> list[float]:
    """Return the scales at which the photo is at least one patch high and wide."""
    return [scale for scale in scales if min(scaled_size(photo.image, scale)) >= patch]


def scaled_size(image: Image8, scale: float) -> tuple[int, int]:
    """Height and width of the scaled photo in pixels, rounded."""
    return round(image.shape[0] * scale), round(image.shape[1] * scale)


def scaled(image: Image8, scale: float) -> Image8:
    """Shrink (H, W, 3) uint8 by area averaging; scale 1 is the image itself."""
    height, width = scaled_size(image, scale)
    if (height, width) == image.shape[:2]:
        return image
    return np.asarray(cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA), np.uint8)


def training_patches(
    photo: Photo,
    number: int,
    *,
    patch: int,
    patches_per_photo: int,
    scales: Sequence[float],
    seed: int,
    policy: str = "random",
    stride: int | None = None,
    redraws: int = 0,
    accept: Callable[[Image8], bool] | None = None,
    refused: Callable[[], None] = lambda: None,
) -> Iterator[ShardSample]:
    """Cut patches of ``patch`` px from a photo that fits at one scale at least.

    All draws follow from (seed, name of the photo, number of the patch).

    Args:
        photo: the photo.
        number: with which the patches' keys begin.
        patch: side in pixels.
        patches_per_photo: for ``random`` how many, for ``grid`` how many at most.
        scales: of the photo.
        seed: of the draws.
        policy: ``random``: a patch's scale is drawn in proportion to its square, so that every scale is covered
            equally densely, and its position is uniform. ``grid``: at each scale all places at multiples of
            ``stride``, and flush with the far edges where a rest is left, so that no pixel is left out; where
            there are more than ``patches_per_photo``, that many of them drawn at random. ``centre``: the centre
            of each scale.
        stride: of the grid in pixels; by default ``patch``.
        redraws: how often a random patch is drawn again that was not accepted.
        accept: whether a patch, uint8 (patch, patch, 3), is worth keeping; by default all are.
        refused: called for each patch that is given up.
    """
    scales = fitting_scales(photo, patch, scales)
    pyramid = [scaled(photo.image, scale) for scale in scales]
    if policy == "random":
        tries = _random_places(photo, pyramid, scales, patch, patch_count(photo, patches_per_photo), seed, redraws)
    else:
        fixed = _grid(pyramid, patch, stride or patch) if policy == "grid" else _centres(pyramid, patch)
        if policy == "grid" and len(fixed) > patches_per_photo:
            order = sorted(range(len(fixed)), key=lambda k: uniform(seed, k, f"grid place of {photo.name}"))
            fixed = [fixed[k] for k in sorted(order[:patches_per_photo])]
        tries = (iter([place]) for place in fixed)
    slug = "".join(c if c.isascii() and c.isalnum() else "_" for c in photo.name)[:40]
    for k, places in enumerate(tries):
        for level, top, left in places:
            image = pyramid[level][top : top + patch, left : left + patch]
            if accept is None or accept(image):
                break
        else:
            refused()
            continue
        yield ShardSample(
            key=f"{number:06d}-{slug}-{k:04d}",
            image=image,
            caption=photo.caption,
            origin={
                "source": photo.name,
                "scene": photo.scene,
                "scale": scales[level],
                "box": [left, top, left + patch, top + patch],
            },
        )


def _random_places(
    photo: Photo,
    pyramid: Sequence[Image8],
    scales: Sequence[float],
    patch: int,
    count: int,
    seed: int,
    redraws: int,
) -> Iterator[Iterator[Place]]:
    bounds = np.cumsum(np.square(scales)) / np.sum(np.square(scales))

    def places(k: int) -> Iterator[Place]:
        for t in range(1 + redraws):
            again = f", try {t}" if t else ""
            u_scale, u_row, u_column = (
                uniform(seed, k, f"patch {what} of {photo.name}{again}") for what in ("scale", "row", "column")
            )
            level = int(np.searchsorted(bounds[:-1], u_scale, side="right"))
            height, width = pyramid[level].shape[:2]
            yield level, int(u_row * (height - patch + 1)), int(u_column * (width - patch + 1))

    return (places(k) for k in range(count))


def _grid(pyramid: Sequence[Image8], patch: int, stride: int) -> list[Place]:
    def starts(length: int) -> list[int]:
        last = length - patch
        return [*range(0, last + 1, stride), *([last] if last % stride else [])]

    return [
        (level, top, left)
        for level, image in enumerate(pyramid)
        for top, left in product(starts(image.shape[0]), starts(image.shape[1]))
    ]


def _centres(pyramid: Sequence[Image8], patch: int) -> list[Place]:
    return [
        (level, (image.shape[0] - patch) // 2, (image.shape[1] - patch) // 2) for level, image in enumerate(pyramid)
    ]


def benchmark_crops(image: Image8, side: int) -> list[Image8]:
    """Cut the centre of a photo into up to two crops of side × side px, along its longer axis."""
    height, width = image.shape[:2]
    if min(height, width) < side:
        return []
    rows, columns = (1, 1 + (width >= 2 * side)) if width >= height else (1 + (height >= 2 * side), 1)
    top, left = (height - rows * side) // 2, (width - columns * side) // 2
    return [
        np.ascontiguousarray(image[top + r * side :, left + c * side :][:side, :side])
        for r in range(rows)
        for c in range(columns)
    ]

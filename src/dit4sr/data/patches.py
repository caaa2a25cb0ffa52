"""What is cut from a photo: random training patches over several scales, and centre crops for a benchmark."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import cv2
import numpy as np

from dit4sr.data.images import Image8
from dit4sr.data.photos import Photo
from dit4sr.data.samples import uniform
from dit4sr.data.shards import ShardSample


def patch_count(photo: Photo, patches_per_photo: int) -> int:
    """Patches of a photo: its weight times ``patches_per_photo``, whatever its size."""
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
    photo: Photo, number: int, *, patch: int, patches_per_photo: int, scales: Sequence[float], seed: int
) -> Iterator[ShardSample]:
    """Cut random patches of ``patch`` px from a photo that fits at one scale at least.

    A patch's scale is drawn in proportion to its square, so every scale is covered equally densely; its
    position is uniform. All draws follow from (seed, name of the photo, number of the patch).
    """
    scales = fitting_scales(photo, patch, scales)
    bounds = np.cumsum(np.square(scales)) / np.sum(np.square(scales))
    pyramid = [scaled(photo.image, scale) for scale in scales]
    slug = "".join(c if c.isascii() and c.isalnum() else "_" for c in photo.name)[:40]
    for k in range(patch_count(photo, patches_per_photo)):
        u_scale, u_row, u_column = (
            uniform(seed, k, f"patch {what} of {photo.name}") for what in ("scale", "row", "column")
        )
        level = int(np.searchsorted(bounds[:-1], u_scale, side="right"))
        image = pyramid[level]
        top = int(u_row * (image.shape[0] - patch + 1))
        left = int(u_column * (image.shape[1] - patch + 1))
        yield ShardSample(
            key=f"{number:06d}-{slug}-{k:04d}",
            image=image[top : top + patch, left : left + patch],
            caption=photo.caption,
            origin={
                "source": photo.name,
                "scene": photo.scene,
                "scale": scales[level],
                "box": [left, top, left + patch, top + patch],
            },
        )


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

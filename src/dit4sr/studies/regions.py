"""Where to look: regions of an image in which methods disagree most."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dit4sr.data.images import Image8
from dit4sr.errors import UserError
from dit4sr.evaluation.fidelity import luma


@dataclass(frozen=True)
class Region:
    """A rectangle in pixels of the restored image; x and y are its top left corner."""

    x: int
    y: int
    width: int
    height: int

    def cut(self, image: Image8) -> Image8:
        """That part of an image."""
        return np.ascontiguousarray(image[self.y : self.y + self.height, self.x : self.x + self.width])


def disagreement(images: Sequence[Image8]) -> NDArray[np.float64]:
    """(H, W): standard deviation of the methods' luma at each pixel.

    Args:
        images: at least two, uint8 (H, W, 3), of one size.
    """
    return np.stack([luma(image) for image in images]).std(0)


def most_disputed(images: Sequence[Image8], width: int, height: int) -> tuple[Region, float]:
    """The region of a size with the highest mean disagreement, and that mean; a sixteenth of the border is left out.

    Args:
        images: uint8 (H, W, 3), of one size.
        width, height: at most the image's.
    """
    table = np.pad(disagreement(images), ((1, 0), (1, 0))).cumsum(0).cumsum(1)
    bottom = table[height:, width:] - table[height:, :-width]
    sums = bottom - (table[:-height, width:] - table[:-height, :-width])
    top, left = (min(n // 16, (m - 1) // 2) for n, m in zip(images[0].shape[:2], sums.shape, strict=True))
    allowed = sums[top : sums.shape[0] - top, left : sums.shape[1] - left]
    y, x = np.unravel_index(int(allowed.argmax()), allowed.shape)
    return Region(int(x) + left, int(y) + top, width, height), float(allowed.max()) / (width * height)


def parse_regions(texts: Sequence[str]) -> dict[str, Region]:
    """``stem:x:y:width:height`` → stem → region, in pixels of the restored image.

    Raises:
        UserError: for another form, or a rectangle without pixels.
    """
    found = {}
    for text in texts:
        match = re.fullmatch(r"(.+):(\d+):(\d+):(\d+):(\d+)", text.strip())
        if match is None or 0 in (int(match[4]), int(match[5])):
            raise UserError(f"regions={text}: write <image>:<x>:<y>:<width>:<height>, in pixels of the restored image")
        if match[1] in found:
            raise UserError(f"regions: {match[1]} has two; give one an image")
        found[match[1]] = Region(int(match[2]), int(match[3]), int(match[4]), int(match[5]))
    return found


def check_inside(stem: str, region: Region, shape: tuple[int, ...]) -> None:
    """Refuse a region that the image does not hold.

    Raises:
        UserError: with the image's size.
    """
    if region.x + region.width > shape[1] or region.y + region.height > shape[0]:
        raise UserError(f"regions: {stem} has {shape[1]}×{shape[0]} pixels, and the region does not lie within it")

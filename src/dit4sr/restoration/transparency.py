"""Transparent photos: what lies under the transparency, and the enlarged alpha."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Image8 = NDArray[np.uint8]


def fill_transparent(rgb: Image8, alpha: Image8) -> Image8:
    """Give pixels that cannot be seen the colour of the nearest one that can.

    What a file holds there (black, as a rule) would bleed into the edges of what is enlarged.

    Args:
        rgb: (H, W, 3).
        alpha: (H, W); 0 cannot be seen.
    """
    from scipy.ndimage import distance_transform_edt

    unseen = alpha == 0
    if not unseen.any() or unseen.all():
        return rgb
    rows, columns = distance_transform_edt(unseen, return_distances=False, return_indices=True)
    return rgb[rows, columns]


def with_alpha(restored: Image8, alpha: Image8) -> Image8:
    """A restored image (H, W, 3) with its photo's alpha (h, w), enlarged bicubically: (H, W, 4)."""
    height, width = restored.shape[:2]
    enlarged = Image.fromarray(alpha).resize((width, height), Image.Resampling.BICUBIC)
    return np.dstack([restored, np.asarray(enlarged)])

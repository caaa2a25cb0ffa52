"""Augmentation of an HR patch before it is degraded.

With a handful of photographs a network soon knows their colours and tones by heart, and "corrects" every
other photo towards them. Turning, recolouring and inverting a patch leaves what super-resolution is about,
edges and textures, and takes the rest away. Large data sets need none of it but the left-right flip.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from dit4sr.errors import UserError
from dit4sr.randomness import numpy_generator, uniform

Image8 = NDArray[np.uint8]


@dataclass(frozen=True)
class Augmentation:
    """What is done to a patch; each draw follows from (seed, number of the sample).

    Attributes:
        margin: HR pixels, a multiple of 4, by which the degraded patch is wider than the training crop that is
            cut from it afterwards. So the codec's blocks fall anywhere in a crop, and a crop's border is no
            image's border, as in the photos that are restored tile by tile.
        turns: any of the eight symmetries of the square in place of the left-right flip alone.
        recolour: probability of a random change of the channels' order, saturation, gamma, contrast and tint.
        invert: probability of the negative.
    """

    margin: int
    turns: bool
    recolour: float
    invert: float

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Self:
        """Build from ``data.augmentation``.

        Raises:
            UserError: for missing or unknown fields, or a margin that is no multiple of 4.
        """
        if wrong := sorted({f.name for f in fields(cls)} ^ set(config)):
            raise UserError(f"data.augmentation: missing or unknown {', '.join(wrong)}")
        if config["margin"] < 0 or config["margin"] % 4:
            raise UserError(f"data.augmentation.margin={config['margin']} must be a multiple of 4, at least 0")
        return cls(**{str(k): v for k, v in config.items()})

    def apply(self, patch: Image8, seed: int, index: int) -> Image8:
        """Augment the patch of sample ``index``: uint8 (H, W, 3), H = W where ``turns``, to the same size."""
        if uniform(seed, index, "flip") < 0.5:
            patch = patch[:, ::-1]
        if self.turns:
            patch = np.rot90(patch, int(4 * uniform(seed, index, "turn")))
        if uniform(seed, index, "invert") < self.invert:
            patch = 255 - patch
        if uniform(seed, index, "recolour") < self.recolour:
            patch = recolour(patch, numpy_generator(seed, index, "recolouring"))
        return np.ascontiguousarray(patch)


def recolour(image: Image8, rng: np.random.Generator) -> Image8:
    """Change channels' order, saturation (×0 to 1.4), gamma (0.55 to 1.8), contrast (×0.5 to 1.05) and tint (±0.06).

    Args:
        image: uint8 (H, W, 3).
        rng: gives the five changes.
    """
    x = image[..., rng.permutation(3)].astype(np.float32) / 255
    grey = x.mean(axis=-1, keepdims=True)
    x = grey + (x - grey) * np.float32(rng.uniform(0, 1.4))
    x = np.clip(x, 0, 1) ** np.float32(np.exp(rng.uniform(-0.6, 0.6)))
    contrast = rng.uniform(0.5, 1.05)
    x = x * np.float32(contrast) + np.float32(rng.uniform() * (1 - contrast))
    x += rng.uniform(-0.06, 0.06, 3).astype(np.float32)
    return (np.clip(x, 0, 1) * 255 + 0.5).astype(np.uint8)

"""Which noise a photo is restored from."""

from __future__ import annotations

import zlib

from dit4sr.randomness import sample_seed


def noise_seed(seed: int, name: str, sample: int = 0) -> int:
    """Seed of a photo's noise: of its name, never of its place in a list, so order and company do not matter.

    Args:
        seed: the run's.
        name: of the photo: in a benchmark its stem, in a folder its relative path.
        sample: number of the restoration, where there are several.
    """
    return sample_seed(seed, zlib.crc32(name.encode("utf-8", "surrogateescape")), f"restore/{sample}")

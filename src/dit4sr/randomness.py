"""Every random number of a run follows from (seed, index, purpose), never from the order of events.

So sample number i is the same whatever the number of workers, ranks or restarts.
"""

from __future__ import annotations

import hashlib

import numpy as np
import torch
from torch import Tensor


def sample_seed(seed: int, index: int, purpose: str) -> int:
    """A 63-bit seed for one purpose of one sample.

    Args:
        seed: the run's seed.
        index: number of the sample in the run's stream, or another counter.
        purpose: what the random numbers are for (``crop``, ``degradation``, ``noise``, …);
            different purposes never share random numbers.
    """
    digest = hashlib.blake2b(f"{seed}/{index}/{purpose}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def uniform(seed: int, index: int, purpose: str) -> float:
    """A uniform number in [0, 1): the sample's hash as a fraction, to the 53 bits that a float holds."""
    return (sample_seed(seed, index, purpose) >> 10) * 2.0**-53


def numpy_generator(seed: int, index: int, purpose: str) -> np.random.Generator:
    """NumPy's generator for one purpose of one sample."""
    return np.random.Generator(np.random.SFC64(sample_seed(seed, index, purpose)))


def normal(seed: int, indices: list[int], purpose: str, shape: tuple[int, ...]) -> Tensor:
    """Standard normal draws, (len(indices), *shape), float32 on the CPU; row by row its own generator."""
    generator = torch.Generator()
    out = torch.empty(len(indices), *shape)
    for row, index in zip(out, indices, strict=True):
        row.normal_(generator=generator.manual_seed(sample_seed(seed, index, purpose)))
    return out

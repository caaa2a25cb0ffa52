"""From a raw sample to a training pair: every draw follows from (seed, number of the sample)."""

from __future__ import annotations

from typing import Any

import numpy as np

from dit4sr.data.degradations import DegradationPreset, degrade
from dit4sr.data.stream import RawSample, UnusableSample
from dit4sr.randomness import sample_seed


def uniform(seed: int, index: int, purpose: str) -> float:
    """A uniform number in [0, 1): the sample's hash as a fraction, to the 53 bits that a float holds."""
    return (sample_seed(seed, index, purpose) >> 10) * 2.0**-53


def make_sample(
    raw: RawSample, *, seed: int, index: int, crop: int, preset: DegradationPreset, prompt_drop: float
) -> dict[str, Any]:
    """Crop, flip and degrade one raw sample.

    Args:
        raw: the decoded sample.
        seed: the run's seed.
        index: number of the sample in the run's stream.
        crop: side of the HR crop in pixels, a multiple of 4.
        preset: the degradation.
        prompt_drop: probability of the null prompt "" in place of the caption.

    Returns:
        index: int; hq: uint8 (3, crop, crop); lq: uint8 (3, crop/4, crop/4); prompt: str. RGB. The flip
        (left-right, probability 1/2) comes before the degradation, so artefacts are never mirrored.

    Raises:
        UnusableSample: the image is smaller than the crop.
    """
    height, width = raw.image.shape[:2]
    if height < crop or width < crop:
        raise UnusableSample(f"smaller than the crop of {crop} px", raw.where)
    top = int(uniform(seed, index, "crop row") * (height - crop + 1))
    left = int(uniform(seed, index, "crop column") * (width - crop + 1))
    hq = raw.image[top : top + crop, left : left + crop]
    if uniform(seed, index, "flip") < 0.5:
        hq = hq[:, ::-1]
    hq, lq = degrade(np.ascontiguousarray(hq), preset, sample_seed(seed, index, "degradation"))
    dropped = uniform(seed, index, "prompt drop") < prompt_drop
    return {
        "index": index,
        "hq": hq.transpose(2, 0, 1),
        "lq": lq.transpose(2, 0, 1),
        "prompt": "" if dropped else raw.caption,
    }

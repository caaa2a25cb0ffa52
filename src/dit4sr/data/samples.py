"""From a raw sample to a training pair: every draw follows from (seed, number of the sample)."""

from __future__ import annotations

from typing import Any

from dit4sr.data.augmentation import Augmentation
from dit4sr.data.degradations import DegradationPreset, degrade
from dit4sr.data.stream import RawSample, UnusableSample
from dit4sr.randomness import sample_seed, uniform

SCALE = 4
"""The degradations make the LR image this many times smaller along each side."""


def make_sample(
    raw: RawSample,
    *,
    seed: int,
    index: int,
    crop: int,
    preset: DegradationPreset,
    augmentation: Augmentation,
    prompt_drop: float,
) -> dict[str, Any]:
    """Cut a patch, augment and degrade it, and cut the training crop from the pair.

    Args:
        raw: the decoded sample.
        seed: the run's seed.
        index: number of the sample in the run's stream.
        crop: side of the HR crop in pixels, a multiple of 4.
        preset: the degradation.
        augmentation: before the degradation, so that artefacts are never turned or recoloured.
        prompt_drop: probability of the null prompt "" in place of the caption.

    Returns:
        index: int; hq: uint8 (3, crop, crop); lq: uint8 (3, crop/4, crop/4); prompt: str. RGB.

    Raises:
        UnusableSample: the image is smaller than the crop and its margin.
    """
    height, width = raw.image.shape[:2]
    side = crop + augmentation.margin
    if height < side or width < side:
        raise UnusableSample(f"smaller than the crop and its margin, {side} px", raw.where)
    top, left = place(seed, index, "patch", height - side, width - side)
    patch = augmentation.apply(raw.image[top : top + side, left : left + side], seed, index)
    hq, lq = degrade(patch, preset, sample_seed(seed, index, "degradation"))
    y, x = place(seed, index, "crop", augmentation.margin // SCALE, augmentation.margin // SCALE)
    lq = lq[y : y + crop // SCALE, x : x + crop // SCALE]
    hq = hq[y * SCALE : y * SCALE + crop, x * SCALE : x * SCALE + crop]
    dropped = uniform(seed, index, "prompt drop") < prompt_drop
    return {
        "index": index,
        "hq": hq.transpose(2, 0, 1),
        "lq": lq.transpose(2, 0, 1),
        "prompt": "" if dropped else raw.caption,
    }


def place(seed: int, index: int, purpose: str, rows: int, columns: int) -> tuple[int, int]:
    """A uniform place (y, x), 0 ≤ y ≤ rows and 0 ≤ x ≤ columns."""
    return tuple(  # type: ignore[return-value]
        int(uniform(seed, index, f"{purpose} {axis}") * (n + 1)) for axis, n in (("row", rows), ("column", columns))
    )

"""From a raw sample to what training takes: every draw follows from (seed, number of the sample)."""

from __future__ import annotations

from typing import Any

import numpy as np

from dit4sr.data.augmentation import Augmentation
from dit4sr.data.degradations import DegradationPreset, degrade
from dit4sr.data.images import Image8
from dit4sr.data.reader import RawSample
from dit4sr.data.tally import UnusableSample
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
    engine: str = "worker",
    scale: int = SCALE,
    latent_scale: int = 8,
) -> dict[str, Any]:
    """Make sample ``index`` of the stream.

    Args:
        raw: the decoded sample, whose parts say what is made: latents, a pair, or an image to be degraded.
        seed: the run's seed.
        index: number of the sample in the run's stream.
        crop: side of the HR crop in pixels, a multiple of ``scale`` and of ``latent_scale``.
        preset: the degradation.
        augmentation: before the degradation, so that artefacts are never turned or recoloured; a pair is
            augmented as one; latents are not augmented.
        prompt_drop: probability of the null prompt "" in place of the caption.
        engine: "worker" degrades here; "device" leaves it to `degrade_on_device`.
        scale: HR pixels an LR pixel of a pair.
        latent_scale: HR pixels a latent pixel.

    Returns:
        index: int; prompt: str; dropped: whether the null prompt stands for it; embedding: dict of tokens and
        pooled, or None (where there is none, or it is dropped); and
        hq: uint8 (3, crop, crop), lq: uint8 (3, crop/scale, crop/scale), RGB, or
        patch: uint8 (3, side, side) with the augmentation's margin, for the device, or
        hq_latent, lq_latent: float32 (C, crop/latent_scale, crop/latent_scale).

    Raises:
        UnusableSample: the image, its margin included, or the latents are smaller than the crop, or the two
            parts of a pair do not fit each other.
    """
    dropped = bool(uniform(seed, index, "prompt drop") < prompt_drop)
    sample: dict[str, Any] = {
        "index": index,
        "prompt": "" if dropped else raw.caption,
        "dropped": dropped,
        "embedding": None if dropped else raw.prompt,
    }
    if raw.latents is not None:
        return sample | _latents(raw, seed, index, crop // latent_scale)
    if raw.lq is not None:
        return sample | _pair(raw, raw.lq, seed, index, crop, scale, augmentation)
    patch = _patch(raw, seed, index, crop + augmentation.margin, augmentation)
    if engine == "device":
        return sample | {"patch": patch.transpose(2, 0, 1)}
    hq, lq = degrade(patch, preset, sample_seed(seed, index, "degradation"))
    y, x = margin_place(seed, index, augmentation.margin)
    lq = lq[y : y + crop // SCALE, x : x + crop // SCALE]
    hq = hq[y * SCALE : y * SCALE + crop, x * SCALE : x * SCALE + crop]
    return sample | {"hq": hq.transpose(2, 0, 1), "lq": lq.transpose(2, 0, 1)}


def _patch(raw: RawSample, seed: int, index: int, side: int, augmentation: Augmentation) -> Image8:
    height, width = raw.image.shape[:2]
    if height < side or width < side:
        raise UnusableSample(f"smaller than the crop and its margin, {side} px", raw.where)
    top, left = place(seed, index, "patch", height - side, width - side)
    return augmentation.apply(raw.image[top : top + side, left : left + side], seed, index)


def _pair(
    raw: RawSample, lq: Image8, seed: int, index: int, crop: int, scale: int, augmentation: Augmentation
) -> dict[str, Any]:
    (height, width), (rows, columns) = raw.image.shape[:2], lq.shape[:2]
    if (height // scale, width // scale) != (rows, columns):
        raise UnusableSample(
            f"LQ and HQ do not fit the scale {scale}", f"{raw.where} ({columns}x{rows}, {width}x{height})"
        )
    small = crop // scale
    if rows < small or columns < small:
        raise UnusableSample(f"smaller than the crop, {crop} px", raw.where)
    y, x = place(seed, index, "patch", rows - small, columns - small)
    parts = {
        "hq": raw.image[y * scale : y * scale + crop, x * scale : x * scale + crop],
        "lq": lq[y : y + small, x : x + small],
    }
    # The same seed and number make the same draws for both.
    return {name: augmentation.apply(part, seed, index).transpose(2, 0, 1) for name, part in parts.items()}


def _latents(raw: RawSample, seed: int, index: int, side: int) -> dict[str, Any]:
    assert raw.latents is not None
    hq, lq = raw.latents["hq"], raw.latents["lq"]
    if hq.ndim != 3 or hq.shape != lq.shape:
        raise UnusableSample("latents of different shapes", f"{raw.where} ({tuple(hq.shape)}, {tuple(lq.shape)})")
    rows, columns = hq.shape[1:]
    if rows < side or columns < side:
        raise UnusableSample(f"latents smaller than the crop's, {side}", raw.where)
    y, x = place(seed, index, "patch", rows - side, columns - side)
    return {
        f"{name}_latent": latent[:, y : y + side, x : x + side].float().numpy().astype(np.float32)
        for name, latent in (("hq", hq), ("lq", lq))
    }


def place(seed: int, index: int, purpose: str, rows: int, columns: int) -> tuple[int, int]:
    """A uniform place (y, x), 0 ≤ y ≤ rows and 0 ≤ x ≤ columns."""
    return tuple(  # type: ignore[return-value]
        int(uniform(seed, index, f"{purpose} {axis}") * (n + 1)) for axis, n in (("row", rows), ("column", columns))
    )


def margin_place(seed: int, index: int, margin: int) -> tuple[int, int]:
    """Where in a degraded patch the training crop lies: (y, x) in LR pixels; ``margin`` is in HR pixels."""
    return place(seed, index, "crop", margin // SCALE, margin // SCALE)

"""The degradation of a batch where the batch is: what a data worker does with ``data.engine=worker``."""

from __future__ import annotations

import torch
from torch import Tensor

from dit4sr.data.degradations import DegradationPreset, degrade_batch
from dit4sr.data.degradations.batched_resize import take
from dit4sr.data.loading import Batch
from dit4sr.data.samples import SCALE, margin_place
from dit4sr.data.transfer import to_device
from dit4sr.randomness import sample_seed


def degrade_patches(
    batch: Batch, preset: DegradationPreset, *, seed: int, crop: int, margin: int, jpeg: str = "libjpeg"
) -> Batch:
    """Replace ``patch`` by the training pairs that are cut from its degradation.

    Args:
        batch: index (B,) and patch uint8 (B, 3, crop + margin, crop + margin), on any device.
        preset: the degradation.
        seed: the run's seed; with the index it gives each sample's parameters and place.
        crop, margin: HR pixels.
        jpeg: the codec, see `degrade_batch`.

    Returns:
        The batch with hq uint8 (B, 3, crop, crop) and lq uint8 (B, 3, crop/4, crop/4) in place of patch.
    """
    indices = batch["index"].tolist()
    patch = batch["patch"].float() / 255
    hq, lq = degrade_batch(patch, preset, [sample_seed(seed, i, "degradation") for i in indices], jpeg=jpeg)
    places = to_device(torch.tensor([margin_place(seed, i, margin) for i in indices]), hq.device)
    rest = {key: value for key, value in batch.items() if key != "patch"}
    return rest | {
        "hq": _levels(_cut(hq, places * SCALE, crop)),
        "lq": _levels(_cut(lq, places, crop // SCALE)),
    }


def _cut(image: Tensor, places: Tensor, side: int) -> Tensor:
    """A square of every image at its own place (B, 2)."""
    rows, columns = (places[:, axis, None] + torch.arange(side, device=image.device) for axis in (0, 1))
    return take(image, rows, columns)


def _levels(image: Tensor) -> Tensor:
    return torch.round(image * 255).to(torch.uint8)

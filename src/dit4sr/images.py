"""Images between 8-bit arrays and tensors, and the one bicubic upsampling that everything uses."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F


def to_unit(image: Tensor) -> Tensor:
    """uint8 of any shape → float32 in [0, 1]."""
    return image.float() / 255


def from_hwc(image: np.ndarray) -> Tensor:
    """uint8 (H, W, 3) → float32 (1, 3, H, W) in [0, 1]."""
    return to_unit(torch.from_numpy(np.ascontiguousarray(image)).permute(2, 0, 1)[None])


def to_uint8(image: Tensor) -> Tensor:
    """[0, 1] → uint8 of the same shape, rounded to nearest and clipped."""
    return (image.clamp(0, 1) * 255).round().to(torch.uint8)


def to_hwc(image: Tensor) -> np.ndarray:
    """(1, 3, H, W) or (3, H, W) in [0, 1] → uint8 (H, W, 3)."""
    return np.ascontiguousarray(to_uint8(image.reshape(image.shape[-3:])).permute(1, 2, 0).cpu().numpy())


def upsample_bicubic(lq: Tensor, height: int, width: int) -> Tensor:
    """Bicubic upsampling (Keys, a = −0.75, half-pixel centres), clipped to [0, 1].

    The LR stream's input in training and in restoration, and the bicubic baseline, are this
    one function.

    Args:
        lq: (B, 3, h, w) in [0, 1].
        height, width: of the result.
    """
    return F.interpolate(lq, size=(height, width), mode="bicubic", align_corners=False).clamp(0, 1)

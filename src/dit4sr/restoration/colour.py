"""Aligning a restored image's colours to its input's.

A sampled latent drifts in mean colour; the input's low frequencies are trustworthy.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F


def no_alignment(restored: Tensor, reference: Tensor) -> Tensor:
    """The restored image as it is."""
    return restored


def align_adain(restored: Tensor, reference: Tensor) -> Tensor:
    """Give each channel of ``restored`` the mean and deviation of ``reference`` (arXiv 1703.06868, equation 8).

    Args:
        restored, reference: (B, 3, H, W) in [0, 1].
    """
    mean, std = restored.mean((2, 3), keepdim=True), restored.std((2, 3), keepdim=True)
    to_mean, to_std = reference.mean((2, 3), keepdim=True), reference.std((2, 3), keepdim=True)
    return (restored - mean) / std.clamp_min(1e-5) * to_std + to_mean


def align_wavelet(restored: Tensor, reference: Tensor, levels: int = 5) -> Tensor:
    """High frequencies of ``restored`` on the low frequencies of ``reference`` (arXiv 2305.07015, section 3.3).

    An à-trous decomposition: at level i the image is blurred by the binomial kernel [1, 2, 1]²/16
    dilated by 2^i; what the blur takes away is that level's detail.

    Args:
        restored, reference: (B, 3, H, W) in [0, 1].
        levels: number of detail levels taken from ``restored``.
    """
    return restored - _low_pass(restored, levels) + _low_pass(reference, levels)


def _low_pass(image: Tensor, levels: int) -> Tensor:
    line = torch.tensor([0.25, 0.5, 0.25], dtype=image.dtype, device=image.device)
    kernel = torch.outer(line, line).expand(image.shape[1], 1, 3, 3)
    for level in range(levels):
        radius = 2**level
        padded = F.pad(image, (radius,) * 4, mode="replicate")
        image = F.conv2d(padded, kernel, dilation=radius, groups=image.shape[1])
    return image


ALIGN: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "none": no_alignment,
    "adain": align_adain,
    "wavelet": align_wavelet,
}

"""Aligning a restored image's colours to its input's.

A sampled latent drifts in mean colour; the input's low frequencies are trustworthy. The reference is the input
upsampled bicubically, read strip by strip, and the restored image is changed in place: beside it, a strip or two
are all that is in memory.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor
from torch.nn import functional as F

Rows = Callable[[int, int], Tensor]
"""First row and the one after the last → those rows of the reference, (B, 3, rows, W) in [0, 1]."""

STRIP = 64
"""Rows that are aligned at a time."""

WAVELET_LEVELS = 5


def align_in_place(name: str, restored: Tensor, reference: Rows) -> Tensor:
    """Align by one of :data:`ALIGN`; returns ``restored``, changed, not clipped.

    Args:
        name: none, adain or wavelet.
        restored: (B, 3, H, W) float32 in [0, 1].
        reference: see :data:`Rows`.
    """
    ALIGN[name](restored, reference)
    return restored


def align_adain(restored: Tensor, reference: Tensor) -> Tensor:
    """Give each channel of ``restored`` the mean and deviation of ``reference`` (arXiv 1703.06868, equation 8).

    Args:
        restored, reference: (B, 3, H, W) in [0, 1].
    """
    return align_in_place("adain", restored.clone(), lambda first, last: reference[..., first:last, :])


def align_wavelet(restored: Tensor, reference: Tensor, levels: int = WAVELET_LEVELS) -> Tensor:
    """High frequencies of ``restored`` on the low frequencies of ``reference`` (arXiv 2305.07015, section 3.3).

    An à-trous decomposition: at level i the image is blurred by the binomial kernel [1, 2, 1]²/16
    dilated by 2^i; what the blur takes away is that level's detail.

    Args:
        restored, reference: (B, 3, H, W) in [0, 1].
        levels: number of detail levels taken from ``restored``.
    """
    restored = restored.clone()
    _wavelet(restored, lambda first, last: reference[..., first:last, :], levels)
    return restored


def _none(restored: Tensor, reference: Rows) -> None:
    """Leave the restored image as it is."""


def _adain(restored: Tensor, reference: Rows) -> None:
    mean, std = _moments(restored, lambda first, last: restored[..., first:last, :])
    to_mean, to_std = _moments(restored, reference)
    scale = to_std / std.clamp_min(1e-5)
    for first, last in _strips(restored.shape[-2]):
        strip = restored[..., first:last, :]
        strip.sub_(mean.to(strip)).mul_(scale.to(strip)).add_(to_mean.to(strip))


def _moments(like: Tensor, rows: Rows) -> tuple[Tensor, Tensor]:
    """Mean and deviation of each channel of an image of the size of ``like``, (B, 3, 1, 1) float64."""
    count = like.shape[-2] * like.shape[-1]
    strips = list(_strips(like.shape[-2]))

    def total(power: int, about: Tensor | float) -> Tensor:
        sums = [(rows(*strip).double() - about).pow_(power).sum((2, 3), keepdim=True) for strip in strips]
        return torch.stack(sums).sum(0)

    mean = total(1, 0.0) / count
    return mean, (total(2, mean) / max(count - 1, 1)).sqrt()


def _wavelet(restored: Tensor, reference: Rows, levels: int = WAVELET_LEVELS) -> None:
    height, reach = restored.shape[-2], 2**levels - 1  # rows beyond a strip that its blur depends on
    above: Tensor | None = None  # the difference over the rows above the strip, which have been changed already
    for first, last in _strips(height):
        begin, end = max(first - reach, 0), min(last + reach, height)
        known = 0 if above is None else above.shape[-2]
        parts = [] if above is None else [above]
        if begin + known < end:
            parts.append(reference(begin + known, end) - restored[..., begin + known : end, :])
        difference = torch.cat(parts, dim=-2)
        restored[..., first:last, :] += _low_pass(difference, levels)[..., first - begin : last - begin, :]
        above = difference[..., max(last - reach, 0) - begin :, :].clone()


def _low_pass(image: Tensor, levels: int) -> Tensor:
    """The image blurred ``levels`` times, its border repeated; axis by axis, since the kernel is an outer product."""
    for level in range(levels):
        reach = 2**level
        for dim in (-2, -1):
            padded = F.pad(image, (0, 0, reach, reach) if dim == -2 else (reach, reach, 0, 0), mode="replicate")
            size = image.shape[dim]
            image = padded.narrow(dim, 0, size).add(padded.narrow(dim, 2 * reach, size))
            image.mul_(0.25).add_(padded.narrow(dim, reach, size), alpha=0.5)
    return image


def _strips(height: int) -> Iterator[tuple[int, int]]:
    for first in range(0, height, STRIP):
        yield first, min(first + STRIP, height)


ALIGN: dict[str, Callable[[Tensor, Rows], None]] = {"none": _none, "adain": _adain, "wavelet": _wavelet}

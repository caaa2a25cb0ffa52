"""Aligning a restored image's colours to its input's.

A sampled latent drifts in mean colour; the input's low frequencies are trustworthy. The reference is the input
upsampled bicubically. Both come strip by strip, from above to below, and so does the result: beside its input, a strip
or two are all that is in memory.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor
from torch.nn import functional as F

Bands = Callable[[], Iterator[Tensor]]
"""Begins anew at each call: the restored image's rows from above to below, each (B, 3, rows, W) float32 in [0, 1]."""

Rows = Callable[[int, int], Tensor]
"""First row and the one after the last → those rows of the reference, (B, 3, rows, W) in [0, 1]."""

STRIP = 64
"""Rows that are aligned at a time, at most."""

WAVELET_LEVELS = 5


def align(name: str, restored: Bands, reference: Rows, height: int) -> Iterator[Tensor]:
    """Align by one of :data:`ALIGN`; the result's rows from above to below, not clipped.

    Args:
        name: none, adain (which asks for the restored image twice) or wavelet.
        restored: see :data:`Bands`.
        reference: see :data:`Rows`.
        height: of the whole image.
    """
    yield from ALIGN[name](restored, reference, height)


def _aligned(name: str, restored: Tensor, reference: Tensor) -> Tensor:
    strips = align(name, lambda: iter([restored]), lambda a, b: reference[..., a:b, :], restored.shape[-2])
    return torch.cat(list(strips), dim=-2)


def align_adain(restored: Tensor, reference: Tensor) -> Tensor:
    """Give each channel of ``restored`` the mean and deviation of ``reference`` (arXiv 1703.06868, equation 8).

    Args:
        restored, reference: (B, 3, H, W) in [0, 1].
    """
    return _aligned("adain", restored, reference)


def align_wavelet(restored: Tensor, reference: Tensor) -> Tensor:
    """High frequencies of ``restored`` on the low frequencies of ``reference`` (arXiv 2305.07015, section 3.3).

    An à-trous decomposition: at level i the image is blurred by the binomial kernel [1, 2, 1]²/16
    dilated by 2^i; what the blur takes away is that level's detail.

    Args:
        restored, reference: (B, 3, H, W) in [0, 1]; of the former :data:`WAVELET_LEVELS` levels of detail are taken.
    """
    return _aligned("wavelet", restored, reference)


def _none(restored: Bands, reference: Rows, height: int) -> Iterator[Tensor]:
    """The restored image as it is."""
    return _strips(restored)


def _adain(restored: Bands, reference: Rows, height: int) -> Iterator[Tensor]:
    mean, std = _moments(_strips(restored))
    firsts = range(0, height, STRIP)
    to_mean, to_std = _moments(reference(first, min(first + STRIP, height)) for first in firsts)
    scale = to_std / std.clamp_min(1e-5)
    for strip in _strips(restored):
        yield strip.sub(mean.to(strip)).mul_(scale.to(strip)).add_(to_mean.to(strip))


def _moments(strips: Iterator[Tensor]) -> tuple[Tensor, Tensor]:
    """Mean and deviation of each channel of an image, (B, 3, 1, 1) float64, its strips' put together as they come
    (Chan, Golub and LeVeque 1983, equations 2.1)."""
    count, mean, squares = 0, torch.zeros(()), torch.zeros(())
    for strip in strips:
        values = strip.double()
        more, own = values.shape[-2] * values.shape[-1], values.mean((2, 3), keepdim=True)
        apart = own - mean.to(own)
        squares = squares.to(own) + (values - own).square().sum((2, 3), keepdim=True)
        squares += apart.square() * (count * more / (count + more))
        mean = mean.to(own) + apart * (more / (count + more))
        count += more
    return mean, (squares / max(count - 1, 1)).sqrt()


def _wavelet(restored: Bands, reference: Rows, height: int) -> Iterator[Tensor]:
    reach = 2**WAVELET_LEVELS - 1  # rows that a row's blur depends on, above and below it
    begin = start = known = 0  # the difference is had from row begin on, results are from row start on; strips to known
    waiting: list[Tensor] = []
    difference: list[Tensor] = []
    for strip in _strips(restored):
        first, known = known, known + strip.shape[-2]
        waiting.append(strip)
        difference.append(reference(first, known) - strip)
        ready = known if known == height else known - reach
        if ready <= start:
            continue
        rows, apart = torch.cat(waiting, dim=-2), torch.cat(difference, dim=-2)
        yield rows[..., : ready - start, :] + _low_pass(apart)[..., start - begin : ready - begin, :]
        waiting = [rows[..., ready - start :, :].clone()]
        start, former = ready, begin
        begin = max(start - reach, 0)
        difference = [apart[..., begin - former :, :].clone()]


def _low_pass(image: Tensor) -> Tensor:
    """The image blurred at every level, its border repeated; axis by axis, since the kernel is an outer product."""
    for level in range(WAVELET_LEVELS):
        reach = 2**level
        for dim in (-2, -1):
            padded = F.pad(image, (0, 0, reach, reach) if dim == -2 else (reach, reach, 0, 0), mode="replicate")
            size = image.shape[dim]
            image = padded.narrow(dim, 0, size).add(padded.narrow(dim, 2 * reach, size))
            image.mul_(0.25).add_(padded.narrow(dim, reach, size), alpha=0.5)
    return image


def _strips(restored: Bands) -> Iterator[Tensor]:
    for band in restored():
        yield from band.split(STRIP, dim=-2)


ALIGN: dict[str, Callable[[Bands, Rows, int], Iterator[Tensor]]] = {
    "none": _none,
    "adain": _adain,
    "wavelet": _wavelet,
}

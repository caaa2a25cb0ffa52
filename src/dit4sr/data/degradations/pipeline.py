"""The order of the stages, as data: what is done to an image with one set of drawn parameters."""

from __future__ import annotations

from dataclasses import dataclass

from dit4sr.data.degradations.parameters import (
    DegradationParameters,
    KernelParameters,
    NoiseParameters,
    ResizeParameters,
)

StageParameters = KernelParameters | ResizeParameters | NoiseParameters | int
"""Of a filter, a resize, noise, or a JPEG (its quality)."""


@dataclass(frozen=True)
class Stage:
    """One stage: its name, and the parameters, whose type says which transform it is."""

    name: str
    parameters: StageParameters


def stages(p: DegradationParameters) -> tuple[Stage, ...]:
    """Return the stages in order, from the (sharpened) HR image to the LR image; a filter not drawn is left out.

    Both orders are blur, resize, noise, JPEG (arXiv 2107.10833, section 3); in the second one the JPEG comes
    before or after the resize to the target size and the final sinc filter.
    """
    second_jpeg = Stage("jpeg 2", p.jpeg2)
    return (
        Stage("blur 1", p.blur1),
        Stage("resize 1", p.resize1),
        Stage("noise 1", p.noise1),
        Stage("jpeg 1", p.jpeg1),
        *([Stage("blur 2", p.blur2)] if p.blur2 else []),
        Stage("resize 2", p.resize2),
        Stage("noise 2", p.noise2),
        *([] if p.jpeg_last else [second_jpeg]),
        Stage("resize 3", p.resize3),
        *([Stage("sinc", p.sinc)] if p.sinc else []),
        *([second_jpeg] if p.jpeg_last else []),
    )

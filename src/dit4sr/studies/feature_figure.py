"""The figure of feature evolution: input, features by depth of both networks, results (supplement, figure 2)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import matplotlib
import numpy as np

matplotlib.use("Agg")
from matplotlib import pyplot as plt

from dit4sr.files import write_atomically

if TYPE_CHECKING:
    from dit4sr.studies.controlnet_comparison import Stream

CELL = 1.75
"""Inches of a picture's side."""


def spread(depths: Sequence[int], most: int) -> list[int]:
    """At most so many of the depths, evenly spread, the first and the last among them."""
    if len(depths) <= most:
        return list(depths)
    return [depths[round(i * (len(depths) - 1) / (most - 1))] for i in range(most)]


def write_figure(path: Path, lq: np.ndarray, truth: np.ndarray | None, streams: Sequence[Stream], most: int) -> None:
    """Write the figure of one image as a PNG.

    Args:
        lq: uint8 (h, w, 3).
        truth: uint8 (H, W, 3), or None.
        streams: of the networks, in order.
        most: columns of features.
    """
    columns = max(len(spread(range(stream.depth + 1), most)) for stream in streams)
    steps = list(streams[0].features)
    rows = len(streams) * len(steps)
    size = (CELL * (columns + 2) + 1.0, CELL * rows * 1.12 + 0.7)
    figure, axes = plt.subplots(rows, columns + 2, figsize=size, squeeze=False, layout="constrained")
    for axis in axes.flat:
        axis.set_axis_off()
    for n, stream in enumerate(streams):
        shown = spread(range(stream.depth + 1), most)
        for k, step in enumerate(steps):
            line = axes[n * len(steps) + k]
            for axis, depth in zip(line[1:], shown, strict=False):
                _show(axis, stream.pictures[step][depth].numpy())
                axis.set_title("embedding" if depth == 0 else f"block {depth}", fontsize=8)
            line[1].text(
                -0.06,
                0.5,
                f"step {step}\nσ {stream.sigmas[step]:.2f}",
                transform=line[1].transAxes,
                ha="right",
                va="center",
                fontsize=8,
            )
        top = axes[n * len(steps)]
        _show(top[-1], stream.restored)
        top[-1].set_title(f"{stream.name}, restored", fontsize=9, fontweight="bold")
        # Three lines, two of them empty: room for the heading, which begins at the column's left.
        top[1].set_title("\n\nembedding", fontsize=8)
        heading = top[1].annotate(
            f"LR stream of {stream.name}", (0, 1.15), xycoords="axes fraction", fontsize=10, fontweight="bold"
        )
        heading.set_in_layout(False)
    _show(axes[0, 0], lq)
    axes[0, 0].set_title("LR input", fontsize=9, fontweight="bold")
    if truth is not None:
        _show(axes[len(steps), 0], truth)
        axes[len(steps), 0].set_title("ground truth", fontsize=9, fontweight="bold")
    with write_atomically(path) as temporary:
        figure.savefig(temporary, dpi=130)
    plt.close(figure)


def _show(axis: Any, image: np.ndarray) -> None:
    axis.imshow(image, interpolation="nearest")

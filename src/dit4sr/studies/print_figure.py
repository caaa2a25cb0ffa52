"""Figures at print quality: an image with a marked region, and that region by every method."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np

matplotlib.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.gridspec import GridSpec
from matplotlib.patches import Rectangle

from dit4sr.data.images import Image8
from dit4sr.files import write_atomically
from dit4sr.studies.regions import Region

WIDTH = 7.16
"""Inches: two columns of a conference paper."""
MARK = "#e23c28"


@dataclass(frozen=True, eq=False)
class Panel:
    """A row of the figure.

    Attributes:
        title: below the whole image.
        whole: uint8 (H, W, 3), in which the region is marked.
        region: shown enlarged.
        crops: (label, the whole image by that method).
    """

    title: str
    whole: Image8
    region: Region
    crops: Sequence[tuple[str, Image8]]


def write_panels(folder: Path, name: str, panels: Sequence[Panel], dpi: int) -> list[Path]:
    """Write <name>.pdf and <name>.png: a row a panel, the crops beside each image in as many rows as it takes.

    In the PDF the pictures keep their own pixels; the PNG has ``dpi`` dots per inch.

    Args:
        panels: with the same number of crops each.
    """
    count = len(panels[0].crops)
    lines = 1 if count <= 3 else 2 if count <= 10 else 3
    columns = math.ceil(count / lines)
    # The grid: the whole image takes `lines` rows, and as much width as it needs.
    aspects = [panel.whole.shape[1] / panel.whole.shape[0] for panel in panels]
    crop_aspect = panels[0].region.width / panels[0].region.height
    label = 0.19
    share = sum(aspects) / len(aspects) * lines
    cell_height = (WIDTH - 0.1) / (share + columns * crop_aspect)
    figure = plt.figure(figsize=(WIDTH, len(panels) * (lines * (cell_height + label) + 0.08)))
    grid = GridSpec(
        len(panels) * lines,
        columns + 1,
        figure=figure,
        width_ratios=[share, *[crop_aspect] * columns],
        left=0.004,
        right=0.996,
        top=0.996,
        bottom=label / figure.get_figheight(),
        wspace=0.03,
        hspace=label / cell_height * 1.05,
    )
    for n, panel in enumerate(panels):
        rows = slice(n * lines, (n + 1) * lines)
        axis = figure.add_subplot(grid[rows, 0])
        _show(axis, panel.whole, panel.title)
        box = panel.region
        axis.add_patch(
            Rectangle((box.x - 0.5, box.y - 0.5), box.width, box.height, fill=False, edgecolor=MARK, linewidth=1.2)
        )
        for k, (text, image) in enumerate(panel.crops):
            axis = figure.add_subplot(grid[n * lines + k // columns, 1 + k % columns])
            _show(axis, box.cut(image), text)
            for spine in axis.spines.values():
                spine.set(visible=True, edgecolor=MARK, linewidth=0.8)
    paths = [folder / f"{name}.pdf", folder / f"{name}.png"]
    for path in paths:
        # No date in the PDF: the same pictures give the same file.
        metadata: Any = {"CreationDate": None} if path.suffix == ".pdf" else None
        with write_atomically(path) as temporary:
            figure.savefig(temporary, dpi=dpi, metadata=metadata)
    plt.close(figure)
    return paths


def _show(axis: Any, image: np.ndarray, label: str) -> None:
    axis.imshow(image, interpolation="none")
    axis.set_xticks([])
    axis.set_yticks([])
    for spine in axis.spines.values():
        spine.set_visible(False)
    axis.set_xlabel(label, fontsize=7, labelpad=2)

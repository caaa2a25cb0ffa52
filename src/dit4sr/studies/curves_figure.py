"""A sweep's curves as a figure: the training loss of each model, and its difference from the first one's."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from dit4sr.files import write_atomically
from dit4sr.studies.report import curves

if TYPE_CHECKING:
    from dit4sr.studies.sweep import Job

QUANTITY = "train/loss"
SMOOTHING = 0.1
"""Share of the steps over which a curve is averaged."""


def write_curves(path: Path, jobs: list[Job]) -> bool:
    """Write the figure, a PNG.

    A batch's loss depends mostly on how noisy its samples are. All models see the same batches at the same σ, so their
    difference shows in few steps what the curves themselves hide.

    Args:
        path: of the figure.
        jobs: the evaluated ones, by model and seed; the first model is what the others are compared with.

    Returns:
        Whether there was anything to draw.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    from dit4sr.evaluation.reports.figures import COLOURS

    losses = losses_of(jobs)
    if not losses:
        return False
    figure = Figure(figsize=(9.2, 3.6), layout="constrained")
    above, beside = figure.subplots(1, 2)
    reference = next(iter(losses))
    for colour, (model, seeds) in zip(COLOURS, losses.items(), strict=False):
        steps, values = mean_over(list(seeds.values()))
        above.plot(steps, smooth(values), color=colour, lw=1.6, label=model)
        shared = [s for s in seeds if s in losses[reference]] if model != reference else []
        apart = []
        for seed in shared:
            mine, other = seeds[seed], losses[reference][seed]
            apart.append({step: mine[step] - other[step] for step in mine.keys() & other.keys()})
        if not any(apart):
            continue
        for difference in apart if len(apart) > 1 else []:
            steps, values = mean_over([difference])
            beside.plot(steps, smooth(values), color=colour, lw=0.7, alpha=0.35)
        steps, values = mean_over(apart)
        beside.plot(steps, smooth(values), color=colour, lw=1.8, label=model)
    above.set_title("training loss", loc="left", fontsize=10)
    above.set_yscale("log")
    above.yaxis.set_major_formatter("{x:g}")
    above.yaxis.set_minor_formatter("{x:g}")
    beside.set_title(f"the same less that of {reference} (thin: single seeds)", loc="left", fontsize=10)
    beside.axhline(0, color="#444444", lw=0.8)
    for axes in (above, beside):
        axes.set_xlabel("step", fontsize=9)
        axes.tick_params(which="both", labelsize=8)
        axes.spines[["top", "right"]].set_visible(False)
    above.legend(fontsize=8, frameon=False)
    FigureCanvasAgg(figure)
    with write_atomically(path) as temporary:
        figure.savefig(temporary, dpi=150, format="png")
    return True


def losses_of(jobs: list[Job]) -> dict[str, dict[int, dict[int, float]]]:
    """Model → seed → step → training loss."""
    found: dict[str, dict[int, dict[int, float]]] = {}
    for line in curves(jobs).get(QUANTITY, []):
        found.setdefault(line["model"], {})[line["seed"]] = dict(line["points"])
    return found


def mean_over(seeds: list[dict[int, float]]) -> tuple[np.ndarray, np.ndarray]:
    """Steps that all have, (n,), and the mean over the seeds, (n,)."""
    steps = sorted(set.intersection(*(set(seed) for seed in seeds)))
    return np.array(steps), np.array([np.mean([seed[step] for seed in seeds]) for step in steps])


def smooth(values: np.ndarray) -> np.ndarray:
    """A running mean, (n,) → (n,): centred, and narrower at the ends."""
    half = int(len(values) * SMOOTHING / 2)
    sums = np.concatenate([[0.0], np.cumsum(values)])
    index = np.arange(len(values))
    width = np.minimum(half, np.minimum(index, len(values) - 1 - index))
    return (sums[index + width + 1] - sums[index - width]) / (2 * width + 1)

"""The figure: how often our result was preferred to each competitor's, by question."""

from __future__ import annotations

import io
import math

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from dit4sr.studies.user_study.results import QUESTIONS, Summary

TITLES = {"realism": "Which has higher image realism?", "fidelity": "Which has better fidelity to the original?"}
OURS, OTHER = "#0f766e", "#c9ced4"


def draw(summary: Summary, form: str = "png") -> bytes:
    """Stacked bars, ours on the left, with 95 % intervals; the wider of the two kinds is drawn.

    Args:
        summary: with one vote at the least, or an empty figure comes out.
        form: png or pdf.
    """
    competitors = list(dict.fromkeys(rate.competitor for rate in summary.rates))
    # Not by pyplot, which is not for the threads of a server.
    figure = Figure(figsize=(9, 1.5 + 0.42 * max(1, len(competitors))), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(1, len(QUESTIONS), sharey=True)
    for axes, question in zip(panels, QUESTIONS, strict=True):
        rates = {rate.competitor: rate for rate in summary.rates if rate.question == question}
        for row, competitor in enumerate(competitors):
            rate = rates[competitor]
            share = 100 * rate.share
            axes.barh(row, share, color=OURS, height=0.66)
            axes.barh(row, 100 - share, left=share, color=OTHER, height=0.66)
            intervals = [i for i in (rate.wilson, rate.resampled) if not math.isnan(i[0])]
            low, high = max(intervals, key=lambda i: i[1] - i[0])
            axes.plot([100 * low, 100 * high], [row, row], color="black", linewidth=1.4, marker="|", markersize=7)
            axes.text(2, row, f"{share:.0f}%", va="center", ha="left", color="white" if share > 14 else "black")
            axes.text(101, row, f"n={rate.votes}", va="center", ha="left", fontsize=8)
        axes.axvline(50, color="black", linewidth=0.8, linestyle=":")
        axes.set(xlim=(0, 100), title=TITLES[question], xlabel=f"preferred {summary.ours} [%]")
        axes.set_yticks(range(len(competitors)), competitors)
        axes.spines[["top", "right"]].set_visible(False)
    panels[0].invert_yaxis()
    panels[0].set_ylabel("against")
    with io.BytesIO() as file:
        figure.savefig(file, format=form, dpi=160)
        return file.getvalue()

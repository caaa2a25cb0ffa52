"""Which differences between a sweep's models the seeds bear out, in words."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dit4sr.studies.sweep import Job


def over_seeds_in_words(jobs: list[Job]) -> list[str]:
    """One line a metric: which models differ from the first one, paired by seed, beyond a 95 % interval.

    A seed fixes the data stream and the shared starting weights, so the models' results under one seed are a pair.
    The interval is Student's t for the mean of the seeds' differences. Empty where no two models share two seeds.
    """
    from dit4sr.studies.ablation import columns_of, models_of
    from dit4sr.studies.report import interval

    reference, *others = models_of(jobs)
    lines = []
    for column in columns_of(jobs):
        first = _by_seed(jobs, reference, column.name)
        apart: list[tuple[str, str]] = []
        together: list[tuple[str, str]] = []
        counts: set[int] = set()
        for model in others:
            own = _by_seed(jobs, model, column.name)
            pairs = [own[seed] - first[seed] for seed in sorted(own.keys() & first.keys())]
            half = interval(pairs)
            if half is None:
                continue
            counts.add(len(pairs))
            mean = math.fsum(pairs) / len(pairs)
            shown = f"{mean:+.{column.digits}f} [{mean - half:+.{column.digits}f}, {mean + half:+.{column.digits}f}]"
            (apart if abs(mean) > half else together).append((model, shown))
        if not counts:
            continue
        seeds = "–".join(str(n) for n in sorted({min(counts), max(counts)}))
        said = ", ".join(f"{model} {shown}" for model, shown in apart) or "none"
        rest = f"; not told apart: {', '.join(model for model, _ in together)}" if together else ""
        lines.append(
            f"{column.name}: differs from {reference} beyond the 95 % interval over {seeds} paired seeds "
            f"(Student's t, each comparison for itself): {said}{rest}"
        )
    return lines


def _by_seed(jobs: list[Job], model: str, metric: str) -> dict[int, float]:
    return {job.seed: mean for job in jobs if job.model == model and (mean := job.means(model).get(metric)) is not None}

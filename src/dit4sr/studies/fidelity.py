"""PSNR and SSIM: the evaluations' own numbers beside the published ones, and what they leave out.

Reads folders that evaluate.py wrote. The tables set measured beside reported values; the picture shows where the
method with the higher PSNR is the smoother one.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dit4sr.errors import UserError
from dit4sr.studies.command import Request, outputs_folder, run_study, setting, write_csv, write_text

if TYPE_CHECKING:
    from dit4sr.data.images import Image8
    from dit4sr.studies.evaluations import Evaluation

METRICS = ("psnr", "ssim")
DIGITS = {"psnr": 3, "ssim": 3}
"""As published."""


@dataclass
class Settings:
    """Settings of the study."""

    evaluations: list[str] = setting("folders of evaluate.py, each also as label=folder; []: all under outputs", [])
    pictures: int = setting("images in the picture of a benchmark", 3)
    hq: str | None = setting("where the ground truth is now, if it was moved", None)
    lq: str | None = setting("where the LR images are now, if they were moved", None)
    out: str | None = setting("folder of the results", None)


@dataclass(frozen=True)
class Line:
    """A row of a table: a method's means, measured or reported."""

    method: str
    source: str
    values: dict[str, float]
    n: int | None


def main(arguments: list[str] | None = None) -> int:
    """The study's command line."""
    return run_study("fidelity", __doc__ or "", Settings, study, arguments)


def study(request: Request) -> int:
    """Write table.md, table.csv and a picture for each benchmark."""
    from dit4sr.studies.evaluations import by_benchmark, moved, read_evaluations

    s: Settings = request.settings
    if s.pictures < 1:
        raise UserError(f"pictures={s.pictures}: give 1 or more")
    evaluations = read_evaluations(s.evaluations, outputs_folder())
    texts, rows, pictures, without = [], [], [], []
    for benchmark, members in by_benchmark(moved(e, s.lq, s.hq) for e in evaluations).items():
        measured = measured_lines(members)
        if not measured:
            without.append(f"{benchmark}: no PSNR and SSIM by the published protocol (Y of YCbCr, no border cut)")
            continue
        reported = reported_lines(benchmark, members[0].upscale)
        texts.append(table_text(benchmark, members, measured, reported))
        rows += [row for line in (*measured, *reported) for row in csv_rows(benchmark, line)]
        path = request.out / f"comparison_{benchmark}.png"
        if write_picture(path, members, s.pictures):
            pictures.append(str(path))
    if not texts:
        raise UserError(f"{'; '.join(without)}: evaluate with metrics.protocol=ycbcr metrics.border=0")
    table = "\n\n".join([*texts, *without])
    write_text(request.out / "table.md", table)
    write_csv(request.out / "table.csv", rows)
    print("\n".join([table, "", str(request.out / "table.md"), str(request.out / "table.csv"), *pictures]))
    return 0


def measured_lines(evaluations: list[Evaluation]) -> list[Line]:
    """Every method of the evaluations of one benchmark, over the images that all of them measured."""
    from dit4sr.studies.evaluations import BICUBIC, value_of

    found: dict[str, dict[str, dict[str, float]]] = {}
    for e in evaluations:
        for method in dict.fromkeys(row.method for row in e.rows):
            # Its average and its controls keep their words: dit4sr (mean of 8) of label "ours" is ours (mean of 8).
            label = method if method == BICUBIC else method.replace(e.method, e.label, 1)
            values = {metric: value_of(e.rows, method, metric) for metric in METRICS}
            if all(values.values()):
                found.setdefault(label, values)
    if not found:
        return []
    images = set.intersection(*(set(values["psnr"]) for values in found.values()))
    if not images:
        raise UserError("the evaluations have no image in common: evaluate them on the same images")
    return [
        Line(label, "measured here", {m: mean(values[m][i] for i in sorted(images)) for m in METRICS}, len(images))
        for label, values in found.items()
    ]


def mean(values: Any) -> float:
    """The mean of what is not NaN; NaN for nothing."""
    defined = [v for v in values if not math.isnan(v)]
    return math.fsum(defined) / len(defined) if defined else math.nan


def reported_lines(benchmark: str, upscale: float) -> list[Line]:
    """The published rows of a benchmark; none for one, or for a factor, that the paper does not have."""
    from dit4sr.evaluation.published import SOURCES, UPSCALE, published_fidelity

    if upscale != UPSCALE:
        return []
    source = f"reported: {SOURCES['fidelity']}"
    return [Line(method, source, values, None) for method, values in published_fidelity(benchmark).items()]


def csv_rows(benchmark: str, line: Line) -> list[dict[str, Any]]:
    """table.csv, long form."""
    return [
        {
            "benchmark": benchmark,
            "method": line.method,
            "metric": metric,
            "value": value,
            "images": line.n,
            "source": line.source,
        }
        for metric, value in line.values.items()
    ]


def table_text(benchmark: str, evaluations: list[Evaluation], measured: list[Line], reported: list[Line]) -> str:
    """A benchmark's table: measured above, reported below, ranked apart."""
    from dit4sr.evaluation.published import SOURCES
    from dit4sr.evaluation.tables import Column, markdown_table

    columns = [Column(name, "higher", DIGITS[name]) for name in METRICS]
    controls = {line.method for line in measured if "(shuffled LR)" in line.method}
    parts = [
        f"## {benchmark}",
        f"Measured here, means over {measured[0].n} images; PSNR and SSIM on Y of YCbCr, no border cut:",
        markdown_table({line.method: line.values for line in measured}, columns, unranked=controls),
        "\n".join(f"- {e.label}: {e.folder}{about(e)}" for e in evaluations),
    ]
    if reported:
        parts += [
            f"Reported ({SOURCES['fidelity']}), not measured here:",
            markdown_table({line.method: line.values for line in reported}, columns),
        ]
    else:
        parts.append("The paper reports nothing on this benchmark.")
    return "\n\n".join(parts)


def about(evaluation: Evaluation) -> str:
    """Which checkpoint a method was."""
    facts = evaluation.facts
    return f" ({facts.get('backbone')}, {facts['ckpt']} at step {facts.get('step')})" if "ckpt" in facts else ""


@dataclass(frozen=True, eq=False)
class Shown:
    """One image with every method's result."""

    stem: str
    lq: Image8
    truth: Image8
    results: dict[str, Image8]


def write_picture(path: Path, evaluations: list[Evaluation], count: int) -> bool:
    """The images on which the method of the highest PSNR is smoothest beside ours (supplement, figure 5).

    Columns: the input, the method with the highest PSNR on that image (bicubic among them), the evaluations' own,
    and the ground truth, with PSNR, SSIM and gradient energy below.

    Returns:
        Whether there was a ground truth to compare with.
    """
    from dit4sr.evaluation.fidelity import gradient_energy, psnr_y, ssim_y
    from dit4sr.evaluation.pictures import SheetRow, write_sheet
    from dit4sr.studies.evaluations import BICUBIC, bicubic_of, common_stems, input_of, restored_of, truth_of

    evaluations = [e for e in evaluations if e.restored]
    if not evaluations or evaluations[0].hq is None:
        return False
    scored = []
    for stem in common_stems(evaluations):
        lq, truth = input_of(evaluations[0], stem), truth_of(evaluations[0], stem)
        assert truth is not None
        images = {BICUBIC: bicubic_of(lq, *truth.shape[:2])} | {e.label: restored_of(e, stem) for e in evaluations}
        if any(image.shape != truth.shape for image in images.values()):
            raise UserError(f"{stem}: the restored images and the ground truth have different sizes")
        scores = {name: (psnr_y(i, truth), ssim_y(i, truth), gradient_energy(i, truth)) for name, i in images.items()}
        best = max(scores, key=lambda name: scores[name][0])
        # How much smoother the best by PSNR is than the sharpest: what PSNR does not see.
        gap = max(energy for _, _, energy in scores.values()) - scores[best][2]
        scored.append((gap, stem, best, scores))
    scored.sort(key=lambda item: (-item[0], item[1]))
    rows = []
    for _, stem, best, scores in scored[:count]:
        lq, truth = input_of(evaluations[0], stem), truth_of(evaluations[0], stem)
        assert truth is not None
        images = {BICUBIC: bicubic_of(lq, *truth.shape[:2])} | {e.label: restored_of(e, stem) for e in evaluations}
        captions = [
            f"{psnr:.2f} dB · {ssim:.3f} · {energy:.2f}" + ("  (highest PSNR)" if name == best else "")
            for name, (psnr, ssim, energy) in scores.items()
        ]
        rows.append(SheetRow(stem, [lq, *images.values(), truth], [f"{lq.shape[1]}×{lq.shape[0]}", *captions, ""]))
    columns = ["input (LR)", *scored[0][3], "ground truth"]
    write_sheet(
        path,
        rows,
        columns,
        title=f"PSNR · SSIM · gradient energy (1: as sharp as the truth) on {evaluations[0].benchmark}",
        note="the images on which the method with the highest PSNR is smoothest",
    )
    return True

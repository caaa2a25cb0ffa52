"""Reading what evaluations left behind: their rows, restored images, inputs and ground truths."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from dit4sr.data.images import Image8, UnreadableImage, read_image
from dit4sr.errors import UserError
from dit4sr.evaluation.image_folders import by_stem, find_images, image_files
from dit4sr.evaluation.tables import Row, read_rows

BICUBIC = "bicubic"


@dataclass(frozen=True)
class Evaluation:
    """A folder that evaluate.py wrote.

    Attributes:
        folder: of it.
        label: the method's name here, unique among those compared.
        method: its name in the folder's rows.
        benchmark: its name.
        upscale: factor from LR to HR.
        lq, hq: folders of the benchmark; ``hq`` is None where there is no ground truth.
        restored: stem → file.
        rows: of per_image.csv.
        facts: the summary's words about the method: checkpoint, step, sampler.
    """

    folder: Path
    label: str
    method: str
    benchmark: str
    upscale: float
    lq: Path
    hq: Path | None
    restored: dict[str, Path]
    rows: tuple[Row, ...]
    facts: dict[str, Any]


def read_evaluation(folder: Path, label: str | None = None) -> Evaluation:
    """Read a folder that evaluate.py wrote.

    Raises:
        UserError: it is none, or is not finished.
    """
    summary_file, rows_file = folder / "summary.json", folder / "per_image.csv"
    if not folder.is_dir():
        raise UserError(f"evaluations: {folder} is no folder: give one that evaluate.py wrote (its out=)")
    try:
        summary = json.loads(summary_file.read_text(encoding="utf-8"))
        rows = tuple(read_rows(rows_file))
        benchmark, method = summary["benchmark"], summary["method"]
        hq = benchmark["hq"]
        return Evaluation(
            folder=folder,
            label=label or method["name"],
            method=method["name"],
            benchmark=benchmark["name"],
            upscale=float(benchmark["upscale"]),
            lq=Path(benchmark["lq"]),
            hq=None if hq in (None, "None", "") else Path(hq),
            restored=by_stem(image_files(folder / "restored"), folder) if (folder / "restored").is_dir() else {},
            rows=rows,
            facts=method,
        )
    except FileNotFoundError as error:
        raise UserError(
            f"evaluations: {folder} has no {Path(error.filename).name}: give a finished folder of evaluate.py"
        ) from error
    except (OSError, ValueError, KeyError, TypeError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"evaluations: {folder} holds no readable evaluation ({error}): evaluate it again") from error


def read_evaluations(given: Sequence[str], outputs: Path) -> list[Evaluation]:
    """The evaluations of a study, their labels unique.

    Args:
        given: folders, each optionally as ``label=folder``; empty for all under ``outputs``.
        outputs: where to look for them then; of two of one method on one benchmark the newer is taken.

    Raises:
        UserError: there is none, or one cannot be read.
    """
    if given:
        found = []
        for text in given:
            # A folder may have such a sign in its own name.
            label, equals, folder = text.partition("=") if not Path(text).is_dir() else (text, "", "")
            found.append(
                read_evaluation(Path(folder if equals else text).expanduser(), (label or None) if equals else None)
            )
        return distinguish(found)
    newest: dict[tuple[str, str], Evaluation] = {}
    for summary in sorted(outputs.glob("**/summary.json"), key=lambda path: path.stat().st_mtime):
        if not (summary.parent / "per_image.csv").is_file():
            continue
        evaluation = read_evaluation(summary.parent)
        newest[evaluation.benchmark, evaluation.method] = evaluation
    if not newest:
        raise UserError(f"no evaluation under {outputs}: run python evaluate.py, or give evaluations=<folder>,<folder>")
    return distinguish(list(newest.values()))


def distinguish(evaluations: list[Evaluation]) -> list[Evaluation]:
    """Give evaluations of one benchmark with one label their folders' names as well."""
    count: dict[tuple[str, str], int] = {}
    for e in evaluations:
        count[e.benchmark, e.label] = count.get((e.benchmark, e.label), 0) + 1
    return [
        e if count[e.benchmark, e.label] == 1 else replace(e, label=f"{e.label} ({e.folder.as_posix()})")
        for e in evaluations
    ]


def moved(evaluation: Evaluation, lq: str | None, hq: str | None) -> Evaluation:
    """The evaluation with its benchmark's folders where they are now; None leaves one where it was."""
    if lq:
        evaluation = replace(evaluation, lq=Path(lq).expanduser())
    return replace(evaluation, hq=Path(hq).expanduser()) if hq else evaluation


def by_benchmark(evaluations: Iterable[Evaluation]) -> dict[str, list[Evaluation]]:
    """Evaluations by the benchmark they share.

    Raises:
        UserError: two of one benchmark have different factors or ground truths.
    """
    groups: dict[str, list[Evaluation]] = {}
    for e in evaluations:
        groups.setdefault(e.benchmark, []).append(e)
    for name, members in groups.items():
        first = members[0]
        for other in members[1:]:
            if (other.upscale, other.hq is None) != (first.upscale, first.hq is None):
                raise UserError(
                    f"evaluations: {first.folder} and {other.folder} say that they are of benchmark {name}, but differ "
                    "in its factor or its ground truth: compare evaluations of one benchmark"
                )
    return groups


def input_of(evaluation: Evaluation, stem: str) -> Image8:
    """The LR input of an image, uint8 (h, w, 3).

    Raises:
        UserError: it is not where it was.
    """
    return _read(evaluation.lq, stem, evaluation, "lq")


def truth_of(evaluation: Evaluation, stem: str) -> Image8 | None:
    """The ground truth of an image, uint8 (H, W, 3); None where there is none.

    Raises:
        UserError: it is not where it was.
    """
    return None if evaluation.hq is None else _read(evaluation.hq, stem, evaluation, "hq")


def restored_of(evaluation: Evaluation, stem: str) -> Image8:
    """A restored image, uint8 (H, W, 3).

    Raises:
        UserError: it cannot be read.
    """
    try:
        return read_image(evaluation.restored[stem])
    except (KeyError, OSError, UnreadableImage) as error:
        raise UserError(f"{evaluation.folder}/restored has no readable image {stem}: evaluate it again") from error


def bicubic_of(lq: Image8, height: int, width: int) -> Image8:
    """The input enlarged bicubically, uint8 (height, width, 3)."""
    from dit4sr.images import from_hwc, to_hwc, upsample_bicubic

    return to_hwc(upsample_bicubic(from_hwc(lq), height, width))


def common_stems(evaluations: Sequence[Evaluation]) -> list[str]:
    """Stems of the images that all of them restored.

    Raises:
        UserError: there is none.
    """
    stems = set.intersection(*(set(e.restored) for e in evaluations))
    if not stems:
        names = ", ".join(str(e.folder) for e in evaluations)
        raise UserError(f"no image was restored by all of {names}: evaluate them on the same images")
    return sorted(stems)


def _read(folder: Path, stem: str, evaluation: Evaluation, side: str) -> Image8:
    try:
        return read_image(by_stem(find_images(folder)[1], folder)[stem])
    except (KeyError, OSError, UnreadableImage) as error:
        raise UserError(
            f"{evaluation.folder} was evaluated on {folder}, which has no readable image {stem} now: give the "
            f"benchmark's folder by {side}=<folder>"
        ) from error


def value_of(rows: Iterable[Row], method: str, metric: str) -> dict[str, float]:
    """Image → value of a method's metric by the published protocol (Y of YCbCr, no border cut); seeds averaged."""
    found: dict[str, list[float]] = {}
    for row in rows:
        # Where another protocol was the run's own, the metric is called psnr@ycbcr.
        named = row.metric.partition("@")[0] == metric
        if row.method == method and named and row.protocol == "ycbcr" and row.border == 0:
            found.setdefault(row.image, []).append(row.value)
    return {image: float(np.mean(values)) for image, values in found.items()}

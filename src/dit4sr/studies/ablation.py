"""The ablation's summary: one table and one picture from the jobs of a sweep."""

from __future__ import annotations

import csv
import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf

from dit4sr.errors import UserError
from dit4sr.files import write_atomically

if TYPE_CHECKING:
    from dit4sr.data.images import Image8
    from dit4sr.evaluation.pictures import SheetRow

BASELINE = "bicubic"
PICTURE_ROWS = 3


@dataclass(frozen=True)
class Job:
    """One finished job of a sweep.

    Attributes:
        folder: of the job.
        config: its config.yaml.
        summary: its evaluation's summary.json.
    """

    folder: Path
    config: Any
    summary: dict[str, Any]

    @property
    def model(self) -> str:
        """The model's name."""
        return str(self.config.model.name)

    def values(self, method: str) -> dict[str, float]:
        """Mean by metric of a method of this job's evaluation."""
        statistics = self.summary["methods"][method]
        return {name: s["mean"] for name, s in statistics.items() if s["mean"] is not None}


class SweepSummary(Callback):
    """Hydra callback: after a multirun of ``train.py``, write the sweep's table and picture."""

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        try:
            summarise(Path(config.hydra.sweep.dir))
        except UserError as error:
            print(f"error: {error}", file=sys.stderr)


def jobs_of(sweep: Path) -> tuple[list[Job], list[Path]]:
    """The evaluated jobs of a sweep, in the order of their numbers, and the folders of the others."""
    finished, unfinished = [], []
    folders = [path.parent for path in sweep.glob("*_*/config.yaml")]
    for folder in sorted(folders, key=lambda path: int(path.name.split("_")[0])):
        summary = folder / "evaluation" / "summary.json"
        if summary.is_file():
            finished.append(Job(folder, OmegaConf.load(folder / "config.yaml"), json.loads(summary.read_text())))
        else:
            unfinished.append(folder)
    return finished, unfinished


def summarise(sweep: Path) -> None:
    """Write ``table.csv``, ``table.md`` and ``comparison.png`` into the sweep's folder, and print the table.

    Raises:
        UserError: where no job of the sweep was evaluated.
    """
    from dit4sr.evaluation.pictures import write_sheet
    from dit4sr.evaluation.tables import Column, markdown_table

    jobs, unfinished = jobs_of(sweep)
    if not jobs:
        raise UserError(f"{sweep}: no job was trained and evaluated, so there is nothing to compare")
    metrics = jobs[0].summary["metrics"]
    values = {BASELINE: jobs[0].values(BASELINE), **{job.model: job.values(job.model) for job in jobs}}
    digits = {"psnr": 2, "ssim": 4}
    table = markdown_table(
        values,
        [Column(name, metric["better"], digits.get(name, 3)) for name, metric in metrics.items()],
        first="model",
        unranked={BASELINE},
    )
    facts = sweep_facts(jobs, unfinished)
    with write_atomically(sweep / "table.md") as temporary:
        temporary.write_text("\n".join([table, "", *(f"- {fact}" for fact in facts), ""]), encoding="utf-8")
    write_table(sweep / "table.csv", jobs)
    benchmark = jobs[0].summary["benchmark"]
    columns = ["input (LR)", BASELINE, *(job.model for job in jobs), "ground truth"]
    write_sheet(
        sweep / "comparison.png",
        sheet_rows(jobs),
        columns,
        title=f"Ablation on {benchmark['name']}, ×{benchmark['upscale']:g}",
        note=facts[0],
    )
    print("\n".join(["", table, *facts, *(str(sweep / name) for name in ("table.md", "table.csv", "comparison.png"))]))


def sweep_facts(jobs: list[Job], unfinished: list[Path]) -> list[str]:
    """What the table's numbers depend on, one line each."""
    config = jobs[0].config
    steps = {int(job.config.trainer.max_steps) for job in jobs}
    seeds = sorted({int(job.config.seed) for job in jobs})
    lines = [
        f"backbone {config.backbone.name}, {' or '.join(map(str, sorted(steps)))} steps of "
        f"{config.data.batch_size} crops each: a short budget, meant to compare and not to impress",
        f"seed {', '.join(map(str, seeds))}: the same data stream and the same shared starting weights for all models",
        f"{jobs[0].summary['benchmark']['images']} held-out images, one sample each, "
        f"{config.sampler.steps} Euler steps, guidance {config.sampler.guidance:g}",
    ]
    return lines + [f"not finished: {folder}" for folder in unfinished]


def write_table(path: Path, jobs: list[Job]) -> None:
    """table.csv, long form: model, metric, mean, std over images, n, and what they depend on."""
    names = (
        "model",
        "metric",
        "mean",
        "std",
        "n",
        "protocol",
        "channel",
        "border",
        "backbone",
        "steps",
        "seed",
    )
    with write_atomically(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, names, lineterminator="\n")
        writer.writeheader()
        for number, job in enumerate(jobs):
            for method in ([BASELINE] if number == 0 else []) + [job.model]:
                for metric, statistic in job.summary["methods"][method].items():
                    protocol = {k: job.summary["metrics"][metric][k] for k in ("protocol", "channel", "border")}
                    writer.writerow(
                        {
                            "model": method,
                            "metric": metric,
                            **statistic,
                            **protocol,
                            "backbone": job.config.backbone.name,
                            "steps": 0 if method == BASELINE else job.config.trainer.max_steps,
                            "seed": job.config.seed,
                        }
                    )


def sheet_rows(jobs: list[Job]) -> list[SheetRow]:
    """The first restored images, a column a model."""
    from dit4sr.data.images import read_image
    from dit4sr.evaluation.pictures import SheetRow
    from dit4sr.images import from_hwc, to_hwc, upsample_bicubic

    def bicubic(lq: Image8, truth: Image8) -> Image8:
        return to_hwc(upsample_bicubic(from_hwc(lq), *truth.shape[:2]))

    benchmark = jobs[0].summary["benchmark"]
    restored = sorted((jobs[0].folder / "evaluation" / "restored").glob("*.png"))
    names = [path.name for path in restored[:: max(1, len(restored) // PICTURE_ROWS)]][:PICTURE_ROWS]
    rows = []
    for name in names:
        lq, truth = (read_image(Path(benchmark[side]) / name) for side in ("lq", "hq"))
        models = [read_image(job.folder / "evaluation" / "restored" / name) for job in jobs]
        rows.append(SheetRow(Path(name).stem, [lq, bicubic(lq, truth), *models, truth]))
    return rows

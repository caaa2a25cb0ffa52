"""The ablation's summary: one table, one picture and one page from the jobs of a sweep; and its command."""

from __future__ import annotations

import csv
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import OmegaConf

from dit4sr.errors import UserError
from dit4sr.files import write_atomically
from dit4sr.studies.differences import over_seeds_in_words
from dit4sr.studies.sweep import MODELS, Job, Unfinished

if TYPE_CHECKING:
    from dit4sr.data.images import Image8
    from dit4sr.evaluation.pictures import SheetRow
    from dit4sr.evaluation.tables import Column, Statistic

BASELINE = "bicubic"
PICTURE_ROWS = 3
DIGITS = {"psnr": 2, "ssim": 4}

HELP = """Train and evaluate the six models with one budget and data stream, and compare them.

python experiments/ablation/run.py [setting=value …]

  models      names of configs/model (dit4sr,variant_a,variant_b,variant_c,variant_d,sd3_controlnet)
  seeds       0, or several, such as 0,1,2: the table then shows mean ± deviation (0)
  steps       training steps of each job (120)
  backbone    nano, small, sd35_medium (nano)
  benchmark   on which the models are compared (demo)
  launcher    basic, joblib, submitit_local, slurm, ray (basic); see docs/clusters.md
  jobs        how many run at once with launcher=joblib (1)
  out         the sweep's folder (outputs/ablation/<backbone>-<steps>steps-<benchmark>)

and every setting of train.py. The same command continues an interrupted sweep: finished jobs are kept.
Exit status: 0 done, 1 where a job is not finished (they are listed), 2 for a wrong setting, 75 told to stop."""

SHORT = {"models": "model", "seeds": "seed", "steps": "training.steps", "launcher": "hydra/launcher"}
"""Setting of this command → override of train.py."""


def command(arguments: Sequence[str]) -> list[str]:
    """The command line of ``train`` that an ablation's command line stands for."""
    settings = []
    for argument in arguments:
        name, equals, value = argument.partition("=")
        if equals and name == "jobs":
            settings.append(f"hydra.launcher.n_jobs={value}")
        elif equals and name in SHORT:
            if name == "launcher" and value == "joblib" and not any(a.startswith("jobs=") for a in arguments):
                settings.append("hydra.launcher.n_jobs=1")
            settings.append(f"{SHORT[name]}={value}")
        else:
            settings.append(argument)
    if not any(setting.startswith("model=") for setting in settings):
        settings = [f"model={','.join(MODELS)}", *settings]
    return ["--multirun", "experiment=ablation", *settings]


def main(arguments: Sequence[str] | None = None) -> int:
    """The study's command line."""
    from dit4sr.cli import main as verb

    arguments = list(sys.argv[1:] if arguments is None else arguments)
    if any(argument in ("-h", "--help") for argument in arguments):
        print(HELP)
        return 0
    sys.argv[1:] = command(arguments)
    return verb("train")


def summarise(sweep: Path, jobs: list[Job], unfinished: list[Unfinished]) -> None:
    """Write table.csv, table.md, per_job.csv, curves.png, comparison.png and report.html into the sweep's folder.

    Args:
        sweep: its folder.
        jobs: the evaluated ones, by model and seed.
        unfinished: the others.

    Raises:
        UserError: where the jobs were evaluated on different benchmarks.
    """
    from dit4sr.evaluation.pictures import write_sheet
    from dit4sr.studies.curves_figure import write_curves
    from dit4sr.studies.report import write_page

    benchmarks = {job.summary["benchmark"]["name"] for job in jobs}
    if len(benchmarks) > 1:
        raise UserError(f"{sweep}: its jobs were evaluated on {', '.join(sorted(benchmarks))}: give each its own out=")
    facts = sweep_facts(jobs, unfinished)
    table = table_text(jobs)
    with write_atomically(sweep / "table.md") as temporary:
        temporary.write_text("\n".join([table, "", *(f"- {fact}" for fact in facts), ""]), encoding="utf-8")
    write_csv(sweep / "table.csv", table_rows(jobs))
    write_csv(sweep / "per_job.csv", job_rows(jobs))
    written = ["table.md", "table.csv", "per_job.csv"]
    if write_curves(sweep / "curves.png", jobs):
        written.append("curves.png")
    firsts = one_per_model(jobs)
    if rows := sheet_rows(firsts):
        benchmark = jobs[0].summary["benchmark"]
        columns = ["input (LR)", BASELINE, *(job.model for job in firsts)]
        if len(rows[0].images) > len(columns):
            columns.append("ground truth")
        title = f"Ablation on {benchmark['name']}, ×{benchmark['upscale']:g}"
        write_sheet(sweep / "comparison.png", rows, columns, title=title, note=facts[0])
        written.append("comparison.png")
    write_page(sweep / "report.html", jobs, unfinished, facts)
    print("\n".join(["", table, *facts, *(str(sweep / name) for name in (*written, "report.html"))]))


def one_per_model(jobs: list[Job]) -> list[Job]:
    """Each model's job of the least seed."""
    return list({job.model: job for job in reversed(jobs)}.values())[::-1]


def models_of(jobs: list[Job]) -> list[str]:
    """Names of the models, in order."""
    return list(dict.fromkeys(job.model for job in jobs))


def metrics_of(jobs: list[Job]) -> dict[str, dict[str, Any]]:
    """The metrics that any job has: name → direction and protocol; a job may have been evaluated with more of them."""
    return {name: metric for job in jobs for name, metric in job.summary["metrics"].items()}


def over_seeds(jobs: list[Job]) -> dict[str, dict[str, Statistic]]:
    """Model → metric → mean, deviation and number of the seeds' means; the baseline, which has no seed, first."""
    from dit4sr.evaluation.tables import statistic

    metrics = metrics_of(jobs)
    baseline = {m: v for job in reversed(jobs) for m, v in job.means(BASELINE).items()}
    found = {BASELINE: {m: statistic([v]) for m, v in baseline.items()}}
    for model in models_of(jobs):
        own = [job.means(model) for job in jobs if job.model == model]
        found[model] = {m: statistic(means[m] for means in own if m in means) for m in metrics}
    return found


def columns_of(jobs: list[Job]) -> list[Column]:
    """The table's columns."""
    from dit4sr.evaluation.tables import Column

    metrics = metrics_of(jobs)
    return [Column(name, metric["better"], DIGITS.get(name, 3)) for name, metric in metrics.items()]


def table_text(jobs: list[Job]) -> str:
    """The table in Markdown: the best is bold, the second best italic; several seeds are mean ± deviation."""
    from dit4sr.evaluation.tables import ARROWS, markdown_table, places

    values, columns = over_seeds(jobs), columns_of(jobs)
    means = {model: {name: s.mean for name, s in metrics.items()} for model, metrics in values.items()}
    if all(s.n < 2 for metrics in values.values() for s in metrics.values()):
        return markdown_table(means, columns, first="model", unranked={BASELINE})
    marks = {
        c.name: places({m: v.get(c.name, math.nan) for m, v in means.items() if m != BASELINE}, c) for c in columns
    }
    lines = [
        "| model | seeds | " + " | ".join(f"{c.name} {ARROWS[c.better]}" for c in columns) + " |",
        "|---|---:|" + "---:|" * len(columns),
    ]
    for model, metrics in values.items():
        seeds = "–" if model == BASELINE else str(sum(job.model == model for job in jobs))
        cells = []
        for c in columns:
            s = metrics.get(c.name)
            text = "–" if s is None or math.isnan(s.mean) else f"{s.mean:.{c.digits}f}"
            text = {1: f"**{text}**", 2: f"*{text}*"}.get(marks[c.name].get(model, 0), text)
            cells.append(text if s is None or s.n < 2 else f"{text} ± {s.std:.{c.digits}f}")
        lines.append(f"| {model} | {seeds} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def sweep_facts(jobs: list[Job], unfinished: list[Unfinished]) -> list[str]:
    """What the table's numbers depend on, one line each."""
    config = jobs[0].config
    steps = sorted({int(job.config.trainer.max_steps) for job in jobs})
    seeds = sorted({job.seed for job in jobs})
    benchmark = jobs[0].summary["benchmark"]
    lines = [
        f"backbone {config.backbone.name}, {' or '.join(map(str, steps))} steps of "
        f"{config.data.batch_size} crops each: a short budget, meant to compare and not to impress",
        f"seed {', '.join(map(str, seeds))}: the same data stream and the same shared starting weights for all models"
        + (" of a seed; ± is the deviation over the seeds (n − 1)" if len(seeds) > 1 else ""),
        f"{benchmark['images']} held-out images of {benchmark['name']}, one sample each, "
        f"{config.sampler.steps} Euler steps, guidance {config.sampler.guidance:g}",
    ]
    return lines + over_seeds_in_words(jobs) + [f"not finished: {job}" for job in unfinished]


def table_rows(jobs: list[Job]) -> list[dict[str, Any]]:
    """Rows of table.csv, a model and metric each.

    ``mean`` is that of the seeds' means, ``std`` the deviation over the images (of the seeds' mean deviation),
    ``seed_std`` that over the seeds, empty for one.
    """
    rows = []
    for model, metrics in over_seeds(jobs).items():
        candidates = jobs if model == BASELINE else [job for job in jobs if job.model == model]
        for name, s in metrics.items():
            if not s.n:
                continue
            own = [job for job in candidates if name in job.summary["methods"].get(model, {})]
            own = own[:1] if model == BASELINE else own
            # A benchmark of one image has no deviation.
            stds = [v for job in own if (v := job.summary["methods"][model][name]["std"]) is not None]
            rows.append(
                {
                    "model": model,
                    "metric": name,
                    "mean": s.mean,
                    "std": math.fsum(stds) / len(stds) if stds else "",
                    "n": own[0].summary["methods"][model][name]["n"],
                    "seed_std": "" if math.isnan(s.std) else s.std,
                    "seeds": 0 if model == BASELINE else s.n,
                    **_conditions(own[0], model, name),
                    "seed": " ".join(str(job.seed) for job in own),
                }
            )
    return rows


def job_rows(jobs: list[Job]) -> list[dict[str, Any]]:
    """Rows of per_job.csv: the same of each job alone."""
    return [
        {"model": job.model, "seed": job.seed, "metric": name, **statistic, **_conditions(job, job.model, name)}
        for job in jobs
        for name, statistic in job.summary["methods"][job.model].items()
    ]


def _conditions(job: Job, model: str, metric: str) -> dict[str, Any]:
    return {
        **{k: job.summary["metrics"][metric][k] for k in ("protocol", "channel", "border")},
        "benchmark": job.summary["benchmark"]["name"],
        "backbone": job.config.backbone.name,
        "steps": 0 if model == BASELINE else job.config.trainer.max_steps,
    }


def write_csv(path: Path, rows: list[dict[str, Any]]) -> None:
    """Write rows that have the same keys."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    with write_atomically(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, names, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def sheet_rows(jobs: list[Job]) -> list[SheetRow]:
    """Some restored images, a column a model; the ground truth last, where there is one."""
    from dit4sr.evaluation.pictures import SheetRow

    rows = []
    for name, images in pictures(jobs, PICTURE_ROWS):
        rows.append(SheetRow(name, list(images.values())))
    return rows


def pictures(jobs: list[Job], count: int) -> list[tuple[str, dict[str, Image8]]]:
    """That many of the images that every job restored, spread evenly.

    Returns:
        Name of the image → ``LR``, the baseline, every model, and ``HR`` where the benchmark has it.
    """
    from dit4sr.data.images import read_image
    from dit4sr.evaluation.benchmarks import load_benchmark
    from dit4sr.images import from_hwc, to_hwc, upsample_bicubic

    plain: dict[str, Any] = OmegaConf.to_container(jobs[0].config.benchmark)  # type: ignore[assignment]
    try:
        benchmark = load_benchmark(plain, fixed_prompt="")
    except UserError:  # it is not on this machine any more
        return []
    common = set.intersection(*({path.stem for path in job.restored.glob("*.png")} for job in jobs))
    images = [image for image in benchmark.images if image.name in common]
    count = min(count, len(images))
    found = []
    for image in (images[i * len(images) // count] for i in range(count)):
        restored = {job.model: read_image(job.restored / f"{image.name}.png") for job in jobs}
        lq, size = read_image(image.lq), next(iter(restored.values())).shape[:2]
        shown = {"LR": lq, BASELINE: to_hwc(upsample_bicubic(from_hwc(lq), *size)), **restored}
        if image.hq is not None:
            shown["HR"] = read_image(image.hq)
        found.append((image.name, shown))
    return found

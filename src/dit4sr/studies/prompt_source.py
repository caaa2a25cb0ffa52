"""Prompt source: the same images restored with no prompt and with prompts that describe different images.

Sources: none (the null prompt), lq (a caption of the LR image), hq (of the ground truth), cleaned (of the LR image
after another network has restored it), own (the benchmark's own captions). Captions come from folders of <stem>.txt,
or from a captioner (captioner=llava). Noise and all else are the same for every source.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dit4sr.errors import UserError
from dit4sr.studies.command import Request, run_study, setting, write_csv, write_text
from dit4sr.studies.prompt_captions import WORDS, caption_folders, captions_of, sources_of, write_captions

if TYPE_CHECKING:
    from dit4sr.data.images import Image8
    from dit4sr.evaluation.benchmarks import Benchmark, BenchmarkImage
    from dit4sr.evaluation.metrics import Metric
    from dit4sr.restoration.restorer import Restorer


@dataclass
class Settings:
    """Settings of the study."""

    ckpt: str | None = setting("checkpoint or its run's folder; null: the newest of model= under paths.outputs", None)
    sources: list[str] = setting("of none, lq, hq, cleaned, own; []: all that there are captions for", [])
    lq_prompts: str | None = setting("folder of <stem>.txt that describe the LR images", None)
    hq_prompts: str | None = setting("folder of <stem>.txt that describe the ground truth", None)
    cleaned_prompts: str | None = setting("folder of <stem>.txt that describe the cleaned LR images", None)
    cleaner: str | None = setting("checkpoint for the spandrel library (Real-ESRGAN, SwinIR, …)", None)
    images: list[str] = setting("stems of the benchmark's images; []: count of them, spread evenly", [])
    count: int = setting("number of images where none are named", 4)
    out: str | None = setting("folder of the results", None)


def main(arguments: list[str] | None = None) -> int:
    """The study's command line."""
    return run_study("prompt_source", __doc__ or "", Settings, study, arguments, verb="evaluate")


def study(request: Request) -> int:
    """Write captions.md, table.md, per_image.csv, comparison.png, prompts/ and restored/<source>/."""
    from dit4sr.studies.benchmark import benchmark_of, chosen_images, restorer_for

    s: Settings = request.settings
    config, explicit = request.config, request.explicit
    benchmark = benchmark_of(config, explicit, caption=False)
    images = chosen_images(benchmark, s.images, s.count)
    sources = sources_of(s, config, benchmark)
    folders = caption_folders(s, sources)

    from dit4sr.data.images import UnreadableImage, read_image, write_png
    from dit4sr.evaluation.metrics import build_metrics
    from dit4sr.restoration.noise import noise_seed
    from dit4sr.studies.caption_table import captions_text

    restorer, trained = restorer_for(config, explicit, ckpt=s.ckpt, model=config["model"]["name"])
    try:
        lqs = {image.name: read_image(image.lq) for image in images}
        truths = {image.name: read_image(image.hq) for image in images if image.hq is not None}
    except (OSError, UnreadableImage) as error:
        raise UserError(f"benchmark {benchmark.name}: {error}") from error
    captions = captions_of(sources, folders, s, request, benchmark, images, lqs, truths)
    write_captions(request.out / "prompts", captions)
    by_image = {image.name: {source: captions[source][image.name] for source in sources} for image in images}
    write_text(request.out / "captions.md", captions_text(by_image, WORDS))

    metrics = build_metrics(config["metrics"], str(restorer.device))
    used = [m for m in metrics.metrics if not m.reference or len(truths) == len(images)]
    rows, restored = [], {}
    for image in images:
        for source in sources:
            print(f"{image.name}, prompt: {WORDS[source]}", flush=True)
            result = restorer.restore(
                lqs[image.name],
                captions[source][image.name],
                seed=noise_seed(config["seed"], image.name),
                upscale=benchmark.upscale,
            )
            restored[image.name, source] = result
            write_png(request.out / "restored" / source / f"{image.name}.png", result)
            rows += metric_rows(image.name, source, captions[source][image.name], used, result, truths)
    write_csv(request.out / "per_image.csv", rows)
    facts = [
        f"{benchmark.name}: means over {len(images)} image{'s' if len(images) > 1 else ''} "
        f"({', '.join(i.name for i in images)}), one sample each, the same noise for every source",
        f"{trained.config['model']['name']}: {trained.path} at step {trained.step}; {restorer.sampler.steps} steps, "
        f"guidance {restorer.sampler.guidance:g}",
        *(f"{m.metric} is missing: {m.reason}" for m in metrics.missing),
        "captions.md has the captions, with the sentences that only one of them has",
    ]
    table = table_text(sources, rows, used, by_image)
    write_text(request.out / "table.md", "\n".join([table, "", *(f"- {fact}" for fact in facts)]))
    write_picture(request.out / "comparison.png", images, sources, lqs, restored, truths, rows, benchmark, restorer)
    print("\n".join(["", table, *facts]))
    print("\n".join(str(request.out / name) for name in ("table.md", "captions.md", "per_image.csv", "comparison.png")))
    return 0


def metric_rows(
    name: str,
    source: str,
    caption: str,
    metrics: Sequence[Metric],
    restored: Image8,
    truths: Mapping[str, Image8],
) -> list[dict[str, Any]]:
    """Rows of per_image.csv."""
    return [
        {
            "image": name,
            "source": source,
            "prompt": caption,
            "metric": m.name,
            "value": m(restored, truths.get(name)),
            "protocol": m.protocol,
            "channel": m.channel,
            "border": m.border,
        }
        for m in metrics
    ]


def table_text(
    sources: Sequence[str],
    rows: Sequence[dict[str, Any]],
    metrics: Sequence[Metric],
    captions: Mapping[str, Mapping[str, str]],
) -> str:
    """Means by source, with how many sentences a caption has and how many of them are its own."""
    from dit4sr.evaluation.tables import Column, markdown_table, statistic
    from dit4sr.studies.caption_table import unique_sentences

    marked = {name: unique_sentences(by_source) for name, by_source in captions.items()}
    values = {}
    for source in sources:
        parts = [part for name in captions for part in marked[name][source]]
        values[f"{source}: {WORDS[source]}"] = {
            **{
                m.name: statistic(r["value"] for r in rows if r["source"] == source and r["metric"] == m.name).mean
                for m in metrics
            },
            "sentences": len(parts) / len(captions),
            "of it alone": sum(alone for _, alone in parts) / len(captions),
        }
    columns = [Column(m.name, m.better, m.digits) for m in metrics]
    table = markdown_table(values, columns, first="prompt describes")
    # Counted, not judged: their columns have no arrow.
    lines = table.split("\n")
    for name in ("sentences", "of it alone"):
        cells = [name, None, *(f"{v[name]:.1f}" for v in values.values())]
        width = max(len(c) for c in cells if c)
        lines = [
            line + (f"{'-' * (width + 1)}:|" if cell is None else f" {cell.rjust(width)} |")
            for line, cell in zip(lines, cells, strict=True)
        ]
    return "\n".join(lines)


def write_picture(
    path: Path,
    images: Sequence[BenchmarkImage],
    sources: Sequence[str],
    lqs: Mapping[str, Image8],
    restored: Mapping[tuple[str, str], Image8],
    truths: Mapping[str, Image8],
    rows: Sequence[dict[str, Any]],
    benchmark: Benchmark,
    restorer: Restorer,
) -> None:
    """comparison.png: the input, a result for each source, the ground truth."""
    from dit4sr.evaluation.pictures import SheetRow, write_sheet

    psnr = {(r["image"], r["source"]): r["value"] for r in rows if r["metric"] == "psnr"}
    sheet = []
    for image in images:
        row = [lqs[image.name], *(restored[image.name, source] for source in sources)]
        values = [psnr.get((image.name, source), math.nan) for source in sources]
        texts = ["", *("" if math.isnan(v) else f"{v:.2f} dB" for v in values)]
        if image.name in truths:
            row.append(truths[image.name])
            texts.append("")
        sheet.append(SheetRow(image.name, row, texts))
    columns = ["input (LR)", *(WORDS[source] for source in sources)]
    columns += ["ground truth"] if truths else []
    write_sheet(
        path,
        sheet,
        columns,
        title=f"What the prompt describes, on {benchmark.name}",
        note=f"the same noise in every column; guidance {restorer.sampler.guidance:g}; captions in captions.md",
    )

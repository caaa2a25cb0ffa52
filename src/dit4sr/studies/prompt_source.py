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

if TYPE_CHECKING:
    from dit4sr.data.images import Image8
    from dit4sr.evaluation.benchmarks import Benchmark, BenchmarkImage
    from dit4sr.evaluation.metrics import Metric
    from dit4sr.restoration.restorer import Restorer

WORDS = {
    "none": "no prompt",
    "lq": "the LR image",
    "hq": "the ground truth",
    "cleaned": "the cleaned LR image",
    "own": "the benchmark's own caption",
}
"""Source → what its prompt describes."""


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


Captions = dict[str, dict[str, str]]
"""Source → stem → caption."""


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


def describes_images(config: Mapping[str, Any]) -> bool:
    """Whether the config has a captioner that looks at images."""
    return config["captioner"]["name"] == "llava"


def sources_of(s: Settings, config: Mapping[str, Any], benchmark: Benchmark) -> list[str]:
    """The sources to compare, in the order of :data:`WORDS`.

    Raises:
        UserError: for an unknown one, one without captions, or none beside the null prompt.
    """
    captioner = describes_images(config)
    has_truth = benchmark.has_ground_truth
    available = {
        "none": True,
        "lq": bool(s.lq_prompts) or captioner,
        "hq": bool(s.hq_prompts) or (captioner and has_truth),
        "cleaned": bool(s.cleaned_prompts) or (captioner and bool(s.cleaner)),
        "own": any(image.prompt for image in benchmark.images),
    }
    if unknown := [source for source in s.sources if source not in WORDS]:
        raise UserError(f"sources={','.join(unknown)}: choose among {', '.join(WORDS)}")
    if lacking := [source for source in s.sources if not available[source]]:
        name = lacking[0]
        needs = {
            "own": "a benchmark with a folder of prompts (benchmark.prompts=)",
            "cleaned": "cleaned_prompts=<folder>, or cleaner=<checkpoint> captioner=llava",
        }
        raise UserError(f"sources: {name} needs {needs.get(name, f'{name}_prompts=<folder>, or captioner=llava')}")
    chosen = [source for source in WORDS if (source in s.sources if s.sources else available[source])]
    if len(chosen) < 2:
        raise UserError(
            "there is no prompt to compare with none: give lq_prompts=, hq_prompts= or cleaned_prompts=<folder of "
            "<stem>.txt>, or captioner=llava (with cleaner=<checkpoint> for the cleaned LR image)"
        )
    return chosen


def caption_folders(s: Settings, sources: Sequence[str]) -> dict[str, Path]:
    """Source → its folder of captions.

    Raises:
        UserError: for one that is none.
    """
    folders = {}
    for source in ("lq", "hq", "cleaned"):
        given = getattr(s, f"{source}_prompts")
        if given and source in sources:
            folders[source] = Path(given).expanduser()
            if not folders[source].is_dir():
                raise UserError(f"{source}_prompts={given} is no folder: give one that holds <stem>.txt files")
    return folders


def captions_of(
    sources: Sequence[str],
    folders: Mapping[str, Path],
    s: Settings,
    request: Request,
    benchmark: Benchmark,
    images: Sequence[BenchmarkImage],
    lqs: Mapping[str, Image8],
    truths: Mapping[str, Image8],
) -> Captions:
    """Read or make the captions of all sources.

    Raises:
        UserError: captions are missing, or a model cannot be loaded.
    """
    from dit4sr.prompts.caption_files import read_caption

    found: Captions = {}
    described: dict[str, dict[str, Image8]] = {}
    for source in sources:
        if source == "none":
            found[source] = dict.fromkeys((i.name for i in images), "")
        elif source == "own":
            found[source] = {i.name: i.prompt for i in images}
        elif source in folders:
            files = {i.name: folders[source] / f"{i.name}.txt" for i in images}
            if missing := [name for name, file in files.items() if not file.is_file()]:
                raise UserError(f"{source}_prompts={folders[source]} has no {missing[0]}.txt: add it, or leave it out")
            found[source] = {name: read_caption(file) for name, file in files.items()}
        else:
            shown = {"lq": lqs, "hq": truths}
            described[source] = dict(
                shown[source] if source in shown else cleaned_images(s, request, benchmark, images, lqs)
            )
    if described:
        from dit4sr.prompts.captions import build_captioner
        from dit4sr.restoration.loading import resolve_device

        captioner = build_captioner(request.config["captioner"], resolve_device(request.config["device"]))
        for source, pictures in described.items():
            texts = captioner.caption(list(pictures.values()))
            found[source] = dict(zip(pictures, texts, strict=True))
        captioner.release()
    return {source: found[source] for source in sources}


def cleaned_images(
    s: Settings,
    request: Request,
    benchmark: Benchmark,
    images: Sequence[BenchmarkImage],
    lqs: Mapping[str, Image8],
) -> dict[str, Image8]:
    """The LR images after the cleaner, at the size of the results; also written to cleaned/."""
    from dit4sr.data.images import write_png
    from dit4sr.evaluation.foreign import load_foreign
    from dit4sr.evaluation.methods import Task
    from dit4sr.evaluation.restored import quantise

    config = {"path": s.cleaner, "label": None, "tile": 512, "overlap": 32, "resize": True}
    cleaner = load_foreign(config, benchmark, request.config["device"])
    cleaned = {}
    for image in images:
        cleaned[image.name] = quantise(cleaner.restore([Task(image, lqs[image.name], 0)])[0])
        write_png(request.out / "cleaned" / f"{image.name}.png", cleaned[image.name])
    return cleaned


def write_captions(folder: Path, captions: Captions) -> None:
    """prompts/<source>/<stem>.txt, as ``lq_prompts=`` and the like read them."""
    for source, texts in captions.items():
        if source != "none":
            for name, text in texts.items():
                write_text(folder / source / f"{name}.txt", text)


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

"""The prompts that the study of prompt sources compares: which there are, and where each comes from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dit4sr.errors import UserError
from dit4sr.studies.command import Request, write_text

if TYPE_CHECKING:
    from dit4sr.data.images import Image8
    from dit4sr.evaluation.benchmarks import Benchmark, BenchmarkImage
    from dit4sr.studies.prompt_source import Settings

WORDS = {
    "none": "no prompt",
    "lq": "the LR image",
    "hq": "the ground truth",
    "cleaned": "the cleaned LR image",
    "own": "the benchmark's own caption",
}
"""Source → what its prompt describes."""


Captions = dict[str, dict[str, str]]
"""Source → stem → caption."""


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

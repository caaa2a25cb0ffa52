"""Qualitative figures: input, every method and ground truth, with a zoomed region marked, at print quality.

Reads folders that evaluate.py wrote, and folders of images that other methods restored. Where no images and regions
are given, those are shown in which the methods disagree most.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from dit4sr.errors import UserError
from dit4sr.studies.command import Request, outputs_folder, run_study, setting, write_csv

if TYPE_CHECKING:
    from dit4sr.data.images import Image8
    from dit4sr.studies.evaluations import Evaluation
    from dit4sr.studies.print_figure import Panel
    from dit4sr.studies.regions import Region


@dataclass
class Settings:
    """Settings of the study."""

    evaluations: list[str] = setting("folders of evaluate.py, each also as label=folder; []: all under outputs", [])
    folders: list[str] = setting("other methods' images: label=folder, one a stem", [])
    images: list[str] = setting("stems; []: those with most disagreement", [])
    count: int = setting("images where none are named", 3)
    regions: list[str] = setting("image:x:y:width:height in restored pixels; others are chosen by disagreement", [])
    size: int = setting("pixels of a chosen region's width; it is 3/4 as high", 96)
    bicubic: bool = setting("whether bicubic upsampling is one of the methods", True)
    dpi: int = setting("dots per inch of the PNG", 300)
    hq: str | None = setting("where the ground truth is now, if it was moved", None)
    lq: str | None = setting("where the LR images are now, if they were moved", None)
    out: str | None = setting("folder of the results", None)


@dataclass(frozen=True, eq=False)
class Images:
    """One image of a benchmark by all methods, all of one size.

    Attributes:
        lq: the input, enlarged by repeating pixels, uint8 (H, W, 3).
        methods: label → uint8 (H, W, 3).
        truth: or None.
    """

    lq: Image8
    methods: dict[str, Image8]
    truth: Image8 | None


def main(arguments: list[str] | None = None) -> int:
    """The study's command line."""
    return run_study("qualitative", __doc__ or "", Settings, study, arguments)


def study(request: Request) -> int:
    """Write <benchmark>.pdf, <benchmark>.png and regions.csv."""
    from dit4sr.studies.evaluations import by_benchmark, moved, read_evaluations
    from dit4sr.studies.print_figure import write_panels
    from dit4sr.studies.regions import parse_regions

    s: Settings = request.settings
    check(s)
    given = parse_regions(s.regions)
    evaluations = [e for e in read_evaluations(s.evaluations, outputs_folder()) if e.restored]
    if not evaluations:
        raise UserError("the evaluations hold no restored images: evaluate a checkpoint or another method")
    groups = by_benchmark(moved(e, s.lq, s.hq) for e in evaluations)
    if s.folders and len(groups) > 1:
        raise UserError(f"folders= needs evaluations of one benchmark, not of {', '.join(groups)}")
    rows, paths = [], []
    for benchmark, members in groups.items():
        panels = panels_of(members, s, given)
        paths += write_panels(request.out, benchmark, [panel for panel, _ in panels], s.dpi)
        for panel, disputed in panels:
            r = panel.region
            rows.append(
                {
                    "benchmark": benchmark,
                    "image": panel.title,
                    "x": r.x,
                    "y": r.y,
                    "width": r.width,
                    "height": r.height,
                    "disagreement": "" if disputed is None else f"{disputed:.3f}",
                }
            )
            chosen = "given" if disputed is None else f"methods differ by {disputed:.1f} grey levels"
            print(f"{benchmark}: {panel.title}, region {panel.title}:{r.x}:{r.y}:{r.width}:{r.height} ({chosen})")
    write_csv(request.out / "regions.csv", rows)
    print("\n".join(str(path) for path in [*paths, request.out / "regions.csv"]))
    return 0


def check(s: Settings) -> None:
    """Refuse settings that show nothing.

    Raises:
        UserError: naming the setting.
    """
    for name, least in (("count", 1), ("size", 8), ("dpi", 50)):
        if getattr(s, name) < least:
            raise UserError(f"{name}={getattr(s, name)}: give {least} or more")
    if s.dpi > 1200:
        raise UserError(f"dpi={s.dpi}: give at most 1200")


def panels_of(evaluations: list[Evaluation], s: Settings, given: dict[str, Region]) -> list[tuple[Panel, float | None]]:
    """The rows of a benchmark's figure, each with its disagreement where the region was chosen by it.

    Raises:
        UserError: for images or regions that do not exist.
    """
    from dit4sr.studies.evaluations import common_stems
    from dit4sr.studies.print_figure import Panel
    from dit4sr.studies.regions import check_inside, most_disputed

    stems = common_stems(evaluations)
    folders = other_folders(s.folders, stems, evaluations[0].benchmark)
    if unknown := [stem for stem in [*s.images, *given] if stem not in stems]:
        raise UserError(
            f"images: {', '.join(unknown)} is none of those that all methods restored ({', '.join(stems[:8])}"
            f"{' …' if len(stems) > 8 else ''})"
        )
    wanted = list(dict.fromkeys(s.images or list(given)))
    scored: list[tuple[float, str, Region, float | None]] = []
    for stem in wanted or stems:
        images = read_images(evaluations, folders, stem, bicubic=s.bicubic)
        methods = list(images.methods.values())
        height, width = methods[0].shape[:2]
        if stem in given:
            check_inside(stem, given[stem], methods[0].shape)
            scored.append((0.0, stem, given[stem], None))
            continue
        # One method alone is compared with the truth, or with the input.
        if len(methods) == 1:
            methods.append(images.lq if images.truth is None else images.truth)
        region_width = min(s.size, width, round(height * 4 / 3))
        region, disputed = most_disputed(methods, region_width, min(height, max(1, region_width * 3 // 4)))
        scored.append((disputed, stem, region, disputed))
    if not wanted:
        scored.sort(key=lambda item: (-item[0], item[1]))
        scored = scored[: s.count]
    panels: list[tuple[Panel, float | None]] = []
    for _, stem, region, amount in scored:
        images = read_images(evaluations, folders, stem, bicubic=s.bicubic)
        crops = [("LR input", images.lq), *images.methods.items()]
        crops += [] if images.truth is None else [("ground truth", images.truth)]
        whole = images.lq if images.truth is None else images.truth
        panels.append((Panel(stem, whole, region, crops), amount))
    return panels


def other_folders(given: list[str], stems: list[str], benchmark: str) -> dict[str, dict[str, Path]]:
    """Label → stem → file.

    Raises:
        UserError: for a folder that is none, or lacks an image.
    """
    from dit4sr.evaluation.image_folders import match_names

    found: dict[str, dict[str, Path]] = {}
    for text in given:
        label, equals, where = text.partition("=") if not Path(text).is_dir() else (text, "", "")
        folder = Path(where if equals else text).expanduser()
        label = label if equals else folder.name
        if not folder.is_dir():
            raise UserError(f"folders: {folder} is no folder")
        if label in found:
            raise UserError(f"folders: two are called {label}; write <label>=<folder>")
        found[label], _ = match_names(folder, stems, benchmark)
    return found


def read_images(
    evaluations: list[Evaluation], folders: dict[str, dict[str, Path]], stem: str, *, bicubic: bool
) -> Images:
    """One image by all methods.

    Raises:
        UserError: sizes differ, or a file cannot be read.
    """
    from dit4sr.data.images import UnreadableImage, read_image
    from dit4sr.evaluation.pictures import enlarge
    from dit4sr.studies.evaluations import BICUBIC, bicubic_of, input_of, restored_of, truth_of

    lq, truth = input_of(evaluations[0], stem), truth_of(evaluations[0], stem)
    methods = {e.label: restored_of(e, stem) for e in evaluations}
    for label, files in folders.items():
        try:
            methods[label] = read_image(files[stem])
        except (OSError, UnreadableImage) as error:
            raise UserError(f"folders: {files[stem]} cannot be read ({error})") from error
    height, width = next(iter(methods.values())).shape[:2]
    if bicubic and BICUBIC not in methods:
        methods = {BICUBIC: bicubic_of(lq, height, width), **methods}
    everything = dict(methods) if truth is None else {**methods, "ground truth": truth}
    if wrong := [label for label, image in everything.items() if image.shape[:2] != (height, width)]:
        raise UserError(f"{stem}: {', '.join(wrong)} has another size than {width}×{height}: compare one benchmark")
    return Images(enlarge(lq, height, width), methods, truth)

"""A contact sheet of the degradation: ``python -m dit4sr.data.preview``."""

from __future__ import annotations

import io
import math
import sys
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig, OmegaConf

from dit4sr.errors import UserError
from dit4sr.values import whole_number

if TYPE_CHECKING:
    from PIL.Image import Image as Picture

    from dit4sr.data.degradations import DegradationPreset
    from dit4sr.data.degradations.pipeline import StageParameters
    from dit4sr.data.images import Image8

CELL, GAP, MARGIN, LINE = 176, 6, 14, 15
HEADER = 5 * LINE
INK, FAINT = (20, 20, 20), (105, 105, 105)
SLOTS = ("blur 1", "resize 1", "noise 1", "jpeg 1", "blur 2", "resize 2", "noise 2", "last a", "last b", "last c")
"""Columns between HR and LR. The last three hold the second JPEG, the last resize and the sinc in their drawn order."""
TITLES = ("HR", *SLOTS[:7], "last stage, in the order drawn", "", "", "LR")


@dataclass(frozen=True, eq=False)
class Cell:
    """One picture of the sheet, (h, w, 3) uint8, or None for a stage that was not drawn, and its lines of text."""

    image: Image8 | None = field(repr=False)
    lines: tuple[str, ...]


def run(config: DictConfig, explicit: Collection[str] = ()) -> int:
    """Write ``<out>/preview.png``.

    Args:
        config: configs/preview.yaml, composed.
        explicit: not used.

    Returns:
        0 when done.

    Raises:
        UserError: no photo, one smaller than the crop, or numbers out of range.
    """
    numbers: dict[str, Any] = {name: config[name] for name in ("seed", "samples", "crop")}
    whole_number(numbers, "seed", 0)
    whole_number(numbers, "samples", 1)
    if whole_number(numbers, "crop", 16) % 4:
        raise UserError(f"crop={config.crop}: give a multiple of 4")
    photos = read_photos(config.input, config.crop, config.samples)

    from dit4sr.data.degradations import DegradationPreset
    from dit4sr.files import write_atomically
    from dit4sr.randomness import sample_seed

    preset = DegradationPreset.from_config(OmegaConf.to_container(config.degradation, resolve=True))  # type: ignore[arg-type]
    rows = []
    for n in range(config.samples):
        name, photo = photos[n % len(photos)]
        seed = sample_seed(config.seed, n, "degradation")
        rows.append((f"{name}, sample {n}", sheet_row(photo, preset, seed)))
    sheet = draw_sheet(rows, f"degradation={preset.name}, seed={config.seed}")
    path = Path(config.out) / "preview.png"
    with write_atomically(path) as temporary:
        sheet.save(temporary)
    print(path)
    return 0


def read_photos(where: str | None, crop: int, limit: int) -> list[tuple[str, Image8]]:
    """Centre crops of the first photos of a file or folder (None: the embedded ones) that are large enough.

    Raises:
        UserError: there is none.
    """
    from dit4sr.data.images import SUFFIXES, UnreadableImage, read_image

    if where is None:
        from skimage import data

        found = [(name, getattr(data, name)()) for name in ("astronaut", "chelsea", "coffee", "rocket")]
    else:
        root = Path(where)
        paths = [root] if root.is_file() else sorted(p for p in root.rglob("*") if p.suffix.lower() in SUFFIXES)
        found = []
        for path in paths:
            try:
                image = read_image(path)
            except (OSError, UnreadableImage) as error:
                print(f"warning: {path}: {error}", file=sys.stderr)
                continue
            if min(image.shape[:2]) >= crop:
                found.append((path.name, image))
            if len(found) == limit:
                break
    photos = []
    for name, image in found:
        top, left = ((size - crop) // 2 for size in image.shape[:2])
        if top >= 0 and left >= 0:
            photos.append((name, image[top : top + crop, left : left + crop].copy()))
    if not photos:
        raise UserError(f"input={where}: no photo of at least {crop} px; name another, or set crop=<fewer pixels>.")
    return photos


def sheet_row(photo: Image8, preset: DegradationPreset, seed: int) -> list[Cell]:
    """The pictures of one sample; its LR image is that of `degrade` with the same seed."""
    import numpy as np

    from dit4sr.data.degradations import draw_parameters
    from dit4sr.data.degradations.parameters import worker_noise
    from dit4sr.data.degradations.pipeline import stages
    from dit4sr.data.degradations.worker import apply_stage, sharpen, to_uint8

    height, width = photo.shape[:2]
    p, rng = draw_parameters(preset, seed, height, width), worker_noise(seed)
    image = photo.astype(np.float32) * np.float32(1 / 255)
    if p.usm_sharpen:
        image = sharpen(image)
    shown = {"HR": Cell(to_uint8(image), (f"{width}x{height}", "sharpened (USM)" if p.usm_sharpen else "as it is"))}
    last = iter(SLOTS[7:])
    for stage in stages(p):
        image = apply_stage(image, stage.parameters, rng)
        slot = stage.name if stage.name in SLOTS else next(last)
        name = () if stage.name in SLOTS else (stage.name,)
        shown[slot] = Cell(to_uint8(image), (*name, *describe(stage.parameters)))
    shown["LR"] = Cell(to_uint8(image), (f"{image.shape[1]}x{image.shape[0]}", "rounded to 8 bits"))
    skipped = Cell(None, ("not drawn",))
    return [shown.get(slot, skipped) for slot in ("HR", *SLOTS, "LR")]


def describe(parameters: StageParameters) -> tuple[str, ...]:
    """The drawn parameters of a stage in two or three short lines."""
    from dit4sr.data.degradations.parameters import KernelParameters, NoiseParameters, ResizeParameters

    if isinstance(parameters, ResizeParameters):
        return (parameters.mode, f"to {parameters.width}x{parameters.height}")
    if isinstance(parameters, NoiseParameters):
        colour = "grey" if parameters.gray else "colour"
        strength = (
            f"sigma {255 * parameters.strength:.1f} of 255"
            if parameters.kind == "gaussian"
            else f"scale {parameters.strength:.2f}"
        )
        return (f"{parameters.kind}, {colour}", strength)
    if not isinstance(parameters, KernelParameters):
        return (f"quality {parameters}", "4:2:0")
    first = f"{parameters.family.replace('generalized', 'general.')}, {parameters.size} px"
    if parameters.family == "sinc":
        return (first, f"cut-off {parameters.cutoff / math.pi:.2f} pi")
    if "aniso" in parameters.family:
        degrees = math.degrees(parameters.rotation)
        second = f"sigma {parameters.sigma_x:.2f}, {parameters.sigma_y:.2f}, {degrees:.0f} deg"
    else:
        second = f"sigma {parameters.sigma_x:.2f}"
    return (first, second, f"beta {parameters.beta:.2f}") if parameters.beta else (first, second)


def draw_sheet(rows: Sequence[tuple[str, Sequence[Cell]]], title: str) -> Picture:
    """Draw rows of cells on white: each picture enlarged to the cell by repeating pixels, its text below."""
    import numpy as np
    from PIL import Image, ImageDraw

    columns = len(TITLES)
    row_height = LINE + CELL + 4 + 3 * LINE + 2 * GAP
    width = 2 * MARGIN + columns * CELL + (columns - 1) * GAP
    sheet = Image.new("RGB", (width, 2 * MARGIN + HEADER + len(rows) * row_height), "white")
    draw, large, small = ImageDraw.Draw(sheet), _font(15), _font(12)
    draw.text((MARGIN, MARGIN), title, INK, large)
    for c, text in enumerate(TITLES):
        draw.text((MARGIN + c * (CELL + GAP), MARGIN + 2 * LINE), text, INK, large)
    for r, (name, cells) in enumerate(rows):
        top = MARGIN + HEADER + r * row_height
        draw.text((MARGIN, top), name, FAINT, small)
        for c, cell in enumerate(cells):
            x, y = MARGIN + c * (CELL + GAP), top + LINE + 2
            if cell.image is None:
                draw.rectangle((x, y, x + CELL - 1, y + CELL - 1), outline=(215, 215, 215))
            else:
                picture = Image.fromarray(np.ascontiguousarray(cell.image))
                enlarged = picture.width < CELL
                how = Image.Resampling.NEAREST if enlarged else Image.Resampling.LANCZOS
                sheet.paste(picture.resize((CELL, CELL), how), (x, y))
            for k, line in enumerate(cell.lines):
                draw.text((x, y + CELL + 3 + k * LINE), line, INK if k == 0 else FAINT, small)
    return sheet


def _font(size: int):  # type: ignore[no-untyped-def]
    """DejaVu Sans from matplotlib."""
    import matplotlib
    from PIL import ImageFont

    path = Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf"
    return ImageFont.truetype(io.BytesIO(path.read_bytes()), size)


if __name__ == "__main__":
    from dit4sr.cli import main

    sys.exit(main("preview"))

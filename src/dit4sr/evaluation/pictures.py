"""Comparison sheets: a row an image, a column a method, each with a zoomed crop of the same region.

Drawn with Pillow on white, so that a pixel of the sheet is a pixel of an image wherever the images fit.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from dit4sr.evaluation.metrics import luma
from dit4sr.files import write_atomically

Image8 = NDArray[np.uint8]

CELL_WIDTHS = (320, 288, 256, 224, 192, 160, 128, 96)
"""Pixels; the first with which the sheet is small enough is taken."""
ZOOM = 4
ASPECT = 2 / 3
"""Height of a zoomed crop relative to its width."""
GAP, MARGIN = 8, 16
INK, FAINT, MARK = (20, 20, 20), (110, 110, 110), (226, 60, 40)


@dataclass(frozen=True, eq=False)
class SheetRow:
    """One image of a sheet.

    Attributes:
        title: written above the row.
        images: one a column, uint8 (H, W, 3); smaller ones, such as the LR input, are enlarged to the
            last one's size by repeating pixels.
        captions: one a column, written below; may be empty.
    """

    title: str
    images: Sequence[Image8] = field(repr=False)
    captions: Sequence[str] = ()


def comparison_sheet(
    rows: Sequence[SheetRow], columns: Sequence[str], *, title: str = "", note: str = "", cell: int = 288
) -> Image.Image:
    """Draw a comparison sheet.

    Below each image stands a crop of it, enlarged by repeating pixels, where the row's last image (by custom
    the ground truth) has most detail; a rectangle marks the place.

    Args:
        rows: at least one; each has as many images as there are columns.
        columns: titles.
        title, note: above and below the whole; may be empty.
        cell: width of a column in pixels.

    Raises:
        ValueError: for no rows, or a row with another number of images or captions.
    """
    if not rows:
        raise ValueError("a comparison sheet needs at least one row")
    for row in rows:
        if len(row.images) != len(columns) or len(row.captions) not in (0, len(columns)):
            raise ValueError(f"row {row.title!r} has {len(row.images)} images for {len(columns)} columns")
    size = max(9, cell // 18)
    line = round(1.45 * size)
    blocks = [_draw_row(row, cell, size, line) for row in rows]
    width = 2 * MARGIN + len(columns) * cell + (len(columns) - 1) * GAP
    header = (round(1.8 * line) if title else 0) + line + GAP
    footer = line if note else 0
    height = 2 * MARGIN + header + sum(b.height for b in blocks) + 2 * GAP * (len(blocks) - 1) + footer
    sheet = Image.new("RGB", (width, height), "white")
    draw = ImageDraw.Draw(sheet)
    y = MARGIN
    if title:
        shortened = _shorten(title, width - 2 * MARGIN, size + 4, bold=True)
        draw.text((MARGIN, y), shortened, INK, _font(size + 4, bold=True))
        y += round(1.8 * line)
    for i, name in enumerate(columns):
        x = MARGIN + i * (cell + GAP) + cell // 2
        draw.text((x, y), _shorten(name, cell, size, bold=True), INK, _font(size, bold=True), anchor="ma")
    y += line + GAP
    for block in blocks:
        sheet.paste(block, (MARGIN, y))
        y += block.height + 2 * GAP
    if note:
        draw.text((MARGIN, y - GAP), _shorten(note, width - 2 * MARGIN, size - 1), FAINT, _font(size - 1))
    return sheet


def write_sheet(
    path: Path,
    rows: Sequence[SheetRow],
    columns: Sequence[str],
    *,
    title: str = "",
    note: str = "",
    max_bytes: int = 3_000_000,
) -> None:
    """Write a comparison sheet as a PNG, its cells as large as ``max_bytes`` allow."""
    data = b""
    for cell in CELL_WIDTHS:
        buffer = io.BytesIO()
        comparison_sheet(rows, columns, title=title, note=note, cell=cell).save(buffer, "PNG", optimize=False)
        data = buffer.getvalue()
        if len(data) <= max_bytes:
            break
    with write_atomically(path) as temporary:
        temporary.write_bytes(data)


def most_detailed_region(image: Image8, height: int, width: int) -> tuple[int, int]:
    """Top left corner (y, x) of the region of that size with most gradient energy of luma.

    The energy of the region's central half counts twice, so that a small subject comes to lie in the middle. A
    sixteenth of the image's sides is left out, where it can be: there is seldom a subject at the border.
    """
    y = luma(image)
    energy = np.zeros(y.shape)
    energy[:-1] += np.square(np.diff(y, axis=0))
    energy[:, :-1] += np.square(np.diff(y, axis=1))
    table = np.pad(energy, ((1, 0), (1, 0))).cumsum(0).cumsum(1)
    sums = _region_sums(table, height, width)
    inner_height, inner_width = max(1, height // 2), max(1, width // 2)
    dy, dx = (height - inner_height) // 2, (width - inner_width) // 2
    inner = _region_sums(table, inner_height, inner_width)
    sums = sums + inner[dy : dy + sums.shape[0], dx : dx + sums.shape[1]]
    my, mx = (min(n // 16, (m - 1) // 2) for n, m in zip(y.shape, sums.shape, strict=True))
    allowed = sums[my : sums.shape[0] - my, mx : sums.shape[1] - mx]
    at = np.unravel_index(int(allowed.argmax()), allowed.shape)
    return int(at[0]) + my, int(at[1]) + mx


def _region_sums(table: NDArray[np.float64], height: int, width: int) -> NDArray[np.float64]:
    """Sums over all regions of a size, by their top left corner, from a summed-area table."""
    bottom = table[height:, width:] - table[height:, :-width]
    return bottom - (table[:-height, width:] - table[:-height, :-width])


def enlarge(image: Image8, height: int, width: int) -> Image8:
    """Enlarge (or shrink) by repeating (or leaving out) pixels."""
    if image.shape[:2] == (height, width):
        return image
    return np.asarray(Image.fromarray(image).resize((width, height), Image.Resampling.NEAREST))


def _draw_row(row: SheetRow, cell: int, size: int, line: int) -> Image.Image:
    """The title, the images, their crops, the captions."""
    height, width = row.images[-1].shape[:2]
    images = [enlarge(image, height, width) for image in row.images]
    scale = min(cell / width, cell / height)
    shown_width, shown_height = max(1, round(width * scale)), max(1, round(height * scale))
    crop_width, crop_height = min(cell // ZOOM, width), min(round(cell * ASPECT) // ZOOM, height)
    crop_y, crop_x = most_detailed_region(images[-1], crop_height, crop_width)
    zoomed_height = round(crop_height * cell / crop_width)
    top = line if row.title else 0
    captions_height = line if row.captions else 0
    block_width = len(images) * cell + (len(images) - 1) * GAP
    block_height = top + shown_height + GAP // 2 + zoomed_height + captions_height
    block = Image.new("RGB", (block_width, block_height), "white")
    draw = ImageDraw.Draw(block)
    if row.title:
        draw.text((0, 0), _shorten(row.title, block.width, size), FAINT, _font(size))
    stroke = max(1, cell // 140)
    for i, image in enumerate(images):
        x, y = i * (cell + GAP), top
        left = x + (cell - shown_width) // 2
        method = Image.Resampling.LANCZOS if scale < 1 else Image.Resampling.NEAREST
        block.paste(Image.fromarray(image).resize((shown_width, shown_height), method), (left, y))
        box = [left + crop_x * scale, y + crop_y * scale]
        box += [box[0] + crop_width * scale - 1, box[1] + crop_height * scale - 1]
        draw.rectangle([round(v) for v in box], outline=MARK, width=stroke)
        y += shown_height + GAP // 2
        crop = np.ascontiguousarray(image[crop_y : crop_y + crop_height, crop_x : crop_x + crop_width])
        block.paste(Image.fromarray(enlarge(crop, zoomed_height, cell)), (x, y))
        draw.rectangle([x, y, x + cell - 1, y + zoomed_height - 1], outline=MARK, width=stroke)
        if row.captions:
            caption = _shorten(row.captions[i], cell, size - 1)
            draw.text((x + cell // 2, y + zoomed_height + 2), caption, INK, _font(size - 1), anchor="ma")
    return block


def _shorten(text: str, width: int, size: int, *, bold: bool = False) -> str:
    """The text, its end replaced by an ellipsis where it is wider than ``width`` pixels."""
    font = _font(size, bold=bold)
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(text + "…") > width:
        text = text[:-1]
    return text.rstrip() + "…"


@cache
def _font(size: int, *, bold: bool = False) -> ImageFont.FreeTypeFont:
    """DejaVu Sans, which Matplotlib brings along."""
    from matplotlib import get_data_path

    name = "DejaVuSans-Bold.ttf" if bold else "DejaVuSans.ttf"
    return ImageFont.truetype(Path(get_data_path()) / "fonts" / "ttf" / name, size)

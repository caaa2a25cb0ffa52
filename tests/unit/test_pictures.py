"""Comparison sheets."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tiny_checkpoint import picture

from dit4sr.evaluation.pictures import (
    MARK,
    SheetRow,
    comparison_sheet,
    enlarge,
    most_detailed_region,
    write_sheet,
)


def test_the_region_with_detail_is_found() -> None:
    image = np.full((120, 160, 3), 90, np.uint8)
    image[60:80, 100:130] = np.random.default_rng(0).integers(0, 255, (20, 30, 3))
    y, x = most_detailed_region(image, 40, 50)
    assert y <= 60 and y + 40 >= 80
    assert x <= 100 and x + 50 >= 130
    # And it lies in the middle: its centre is the detail's, to a few pixels.
    assert abs(y + 20 - 70) <= 6
    assert abs(x + 25 - 115) <= 6


def test_the_region_lies_inside_whatever_the_size() -> None:
    image = picture(20, 33, 0)
    for height, width in ((20, 33), (1, 1), (20, 5), (19, 32)):
        y, x = most_detailed_region(image, height, width)
        assert 0 <= y <= 20 - height
        assert 0 <= x <= 33 - width


def test_pixels_are_repeated_not_blended() -> None:
    small = picture(4, 5, 0)
    assert np.array_equal(enlarge(small, 16, 20), small.repeat(4, 0).repeat(4, 1))


def test_every_image_and_the_same_crop_of_each_are_drawn() -> None:
    # Flat colours, which nothing else on the sheet has, except for the reference's detail in its centre.
    colours = [(10, 200, 30), (40, 60, 220), (200, 180, 20)]
    images = [np.full((96, 96, 3), c, np.uint8) for c in colours]
    images[0] = images[0][::4, ::4].copy()
    images[2][40:56, 40:56] = np.random.default_rng(0).integers(0, 255, (16, 16, 3))
    sheet = np.asarray(comparison_sheet([SheetRow("one", images, ["a", "b", "c"])], ["in", "out", "truth"], cell=96))
    thirds = np.array_split(sheet, 3, axis=1)
    for third, colour in zip(thirds, colours, strict=True):
        rows = (third == colour).all(-1).sum(1) > 48
        # Two blocks of that colour, one above the other: the image and the crop.
        assert np.flatnonzero(np.diff(rows.astype(int)) == 1).size >= (1 if colour == colours[2] else 2)
        assert (third == MARK).all(-1).sum() > 96
    assert (sheet[0, 0] == 255).all()
    # The crop shows the detail, 16×16 pixels of it four times as large.
    apart = np.abs(sheet.astype(int) - colours[2]).sum(-1) > 0
    coloured = sheet.max(-1).astype(int) - sheet.min(-1) > 30
    assert (apart & coloured & (sheet != MARK).any(-1))[:, -112:-16].sum() > 0.5 * 16**2 * 4**2


def test_rows_of_different_shapes() -> None:
    rows = [
        SheetRow("wide", [picture(20, 80, 0), picture(80, 320, 0)]),
        SheetRow("tall", [picture(300, 100, 1), picture(300, 100, 1)], ["20.00 dB", ""]),
        SheetRow("tiny", [picture(4, 4, 1), picture(16, 16, 1)]),
    ]
    sheet = comparison_sheet(rows, ["input", "ground truth"], title="a title " * 20, note="a note", cell=128)
    assert sheet.width == 2 * 16 + 2 * 128 + 8


def test_wrong_rows_are_refused() -> None:
    with pytest.raises(ValueError, match="at least one row"):
        comparison_sheet([], ["a"])
    with pytest.raises(ValueError, match="2 images for 1 columns"):
        comparison_sheet([SheetRow("x", [picture(8, 8, 0)] * 2)], ["a"])


def test_a_large_sheet_is_made_to_fit(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (300, 300, 3), dtype=np.uint8)
    rows = [SheetRow(str(i), [noise] * 3) for i in range(2)]
    write_sheet(tmp_path / "large.png", rows, ["a", "b", "c"], max_bytes=10_000_000)
    write_sheet(tmp_path / "small.png", rows, ["a", "b", "c"], max_bytes=500_000)
    assert (tmp_path / "small.png").stat().st_size <= 500_000 < (tmp_path / "large.png").stat().st_size
    assert Image.open(tmp_path / "small.png").width < Image.open(tmp_path / "large.png").width

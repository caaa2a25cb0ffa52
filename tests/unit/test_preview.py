"""The contact sheet: its LR is that of `degrade`, and the command writes a picture."""

import subprocess
import sys

import numpy as np
import pytest
from PIL import Image
from skimage import data

from dit4sr.data.degradations import degrade, draw_parameters, load_preset
from dit4sr.data.preview import SLOTS, TITLES, draw_sheet, sheet_row


@pytest.mark.parametrize("name", ["dit4sr", "light"])
def test_a_row_ends_with_the_images_of_degrade(name):
    photo = np.ascontiguousarray(data.astronaut()[:96, 180:276])
    preset = load_preset(name)
    orders = set()
    for seed in range(12):
        cells = dict(zip(("HR", *SLOTS, "LR"), sheet_row(photo, preset, seed), strict=True))
        hq, lq = degrade(photo, preset, seed)
        np.testing.assert_array_equal(cells["HR"].image, hq)
        np.testing.assert_array_equal(cells["LR"].image, lq)
        p = draw_parameters(preset, seed, 96, 96)
        assert cells["resize 1"].image.shape[:2] == (p.resize1.height, p.resize1.width)
        assert (cells["blur 2"].image is None) == (p.blur2 is None)
        assert cells["jpeg 1"].lines[0] == f"quality {p.jpeg1}"
        orders.add(tuple(cells[f"last {k}"].lines[0] for k in "abc"))
        for cell in cells.values():
            assert 1 <= len(cell.lines) <= 3 and all(len(line) <= 32 for line in cell.lines)
    assert len(orders) >= 3
    sheet = np.asarray(draw_sheet([("a", list(cells.values()))] * 2, "title"))
    assert sheet.shape[1] > 176 * len(TITLES) and 0.3 < (sheet < 250).mean() < 0.95


def test_the_command_writes_the_picture(tmp_path):
    def run(*settings):
        command = [sys.executable, "-m", "dit4sr.data.preview", *settings]
        return subprocess.run(command, capture_output=True, text=True, check=False)

    done = run("degradation=light", "samples=2", "crop=64", f"out={tmp_path}")
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == str(tmp_path / "preview.png")
    with Image.open(tmp_path / "preview.png") as sheet:
        assert sheet.width > 2000
    for settings in (["crop=30"], ["seed=-1"], [f"input={tmp_path / 'nothing'}"]):
        failed = run(f"out={tmp_path}", *settings)
        assert failed.returncode == 2 and failed.stderr.count("\n") == 1

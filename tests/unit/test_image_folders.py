"""Which file of a folder is which image of a benchmark."""

from __future__ import annotations

from pathlib import Path

import pytest

from dit4sr.errors import UserError
from dit4sr.evaluation.image_folders import find_images, match_names

DREALSR = ["Canon_10_x1", "Canon_1_x1", "DSC_0988_x1", "panasonic_103_x1", "P1140090_x1"]
REALSR = ["Canon_001_LR4", "Canon_010_LR4", "Nikon_001_LR4"]


def fill(folder: Path, *names: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        (folder / name).write_bytes(b"")
    return folder


def matched(folder: Path, names: list[str]) -> dict[str, str]:
    return {name: path.name for name, path in match_names(folder, names, "drealsr")[0].items()}


@pytest.mark.parametrize(
    ("names", "style"),
    [
        (DREALSR, "{}_x1.png"),
        (DREALSR, "{}_x1.jpg"),
        (DREALSR, "{}_x1.PNG"),
        (DREALSR, "{}.png"),
        (DREALSR, "{}_x4.webp"),
        (DREALSR, "{}_x1_out.png"),
        (DREALSR, "{}_x1-SwinIR x4.jpeg"),
        (DREALSR, "{}_x1.png.png"),
        (DREALSR, "res_{}_x4.png"),
        (REALSR, "{}.png"),
        (REALSR, "{}_HR.png"),
        (REALSR, "{}_LR4_00000.png"),
    ],
)
def test_names_as_other_methods_write_them(tmp_path: Path, names: list[str], style: str) -> None:
    cores = [name.rpartition("_")[0] for name in names]
    fill(tmp_path, *(style.format(core) for core in cores), "zz_extra.png", "log.txt")
    assert matched(tmp_path, names) == dict(zip(names, (style.format(core) for core in cores), strict=True))
    words = match_names(tmp_path, names, "drealsr")[1]
    assert bool(words) == (Path(style).stem != "{}_x1")


def test_the_same_name_comes_before_a_changed_one(tmp_path: Path) -> None:
    fill(tmp_path, *(f"{name}.png" for name in REALSR), *(f"{name}_before.png" for name in REALSR))
    assert match_names(tmp_path, REALSR, "realsr")[1] == ""
    assert matched(tmp_path, REALSR)["Nikon_001_LR4"] == "Nikon_001_LR4.png"


def test_what_could_be_either_is_refused(tmp_path: Path) -> None:
    fill(tmp_path, *(f"{name}_a.png" for name in REALSR), *(f"{name}_b.png" for name in REALSR))
    with pytest.raises(UserError, match="in several ways .*Canon_001_LR4_a and .*Canon_001_LR4_b"):
        match_names(tmp_path, REALSR, "realsr")


@pytest.mark.parametrize(
    "files",
    [
        ["Canon_001_LR4.png", "Canon_010_LR4.png"],  # one is missing
        ["Canon_001_LR4.png", "Canon_010_LR4_out.png", "Nikon_001_LR4.png"],  # a change for one alone
        ["Canon_0010_LR4.png", "Canon_0100_LR4.png", "Nikon_0010_LR4.png"],  # other numbers
        ["1Canon_001.png", "1Canon_010.png", "1Nikon_001.png"],
        ["canon_001_lr4.png", "canon_010_lr4.png", "nikon_001_lr4.png"],
    ],
)
def test_what_is_not_there_is_not_made_up(tmp_path: Path, files: list[str]) -> None:
    with pytest.raises(UserError, match="has no image for .*of benchmark realsr .*restore them too") as error:
        match_names(fill(tmp_path, *files), REALSR, "realsr")
    assert "Nikon_001_LR4" in str(error.value) or "Canon_010_LR4" in str(error.value)


def test_one_name_is_not_found_inside_a_longer_one(tmp_path: Path) -> None:
    """A benchmark of one image, where nothing but the words' limits tells."""
    with pytest.raises(UserError, match="has no image for 1 of"):
        match_names(fill(tmp_path, "10.png", "21.png"), ["1"], "folder")
    assert matched(fill(tmp_path, "sr_1.png"), ["1"]) == {"1": "sr_1.png"}


def test_images_one_folder_down(tmp_path: Path) -> None:
    fill(tmp_path / "out" / "sample00", *(f"{name}.png" for name in REALSR))
    fill(tmp_path / "out" / "__MACOSX", "._Canon_001_LR4.png", "a.png")
    fill(tmp_path / "out" / "logs", "log.txt")
    assert find_images(tmp_path / "out")[0].name == "sample00"
    assert len(matched(tmp_path / "out", REALSR)) == 3
    fill(tmp_path / "out" / "before", *(f"{name}.png" for name in REALSR))
    with pytest.raises(UserError, match=r"images in several folders \(before, sample00\): give one of them"):
        match_names(tmp_path / "out", REALSR, "realsr")
    with pytest.raises(UserError, match="holds no image"):
        match_names(tmp_path / "out" / "logs", REALSR, "realsr")
    fill(tmp_path / "out", "comparison.png")  # as an evaluation's own folder has it
    with pytest.raises(UserError, match=r"or give a folder inside it \(before, sample00\)"):
        match_names(tmp_path / "out", REALSR, "realsr")


def test_two_files_of_one_stem_are_refused(tmp_path: Path) -> None:
    fill(tmp_path, *(f"{name}.png" for name in REALSR), "Canon_001_LR4.jpg")
    with pytest.raises(UserError, match="has both Canon_001_LR4.* keep one of them"):
        match_names(tmp_path, REALSR, "realsr")

"""Benchmarks: pairing by name, counts, sizes, prompts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from tiny_checkpoint import picture, save, write_pairs

from dit4sr.errors import UserError
from dit4sr.evaluation.benchmarks import load_benchmark
from dit4sr.evaluation.image_folders import image_size


def config(folder: Path, **changes: Any) -> dict[str, Any]:
    fields = {"name": "mine", "lq": str(folder / "lq"), "hq": str(folder / "hq"), "prompts": None}
    return {**fields, "upscale": 4, "count": None, "source": "the moon", **changes}


def test_images_are_paired_by_name_and_sorted(tmp_path: Path) -> None:
    write_pairs(tmp_path, ["b", "a", "c"])
    benchmark = load_benchmark(config(tmp_path))
    assert [image.name for image in benchmark.images] == ["a", "b", "c"]
    for image in benchmark.images:
        assert image.hq is not None
        assert image.lq.name == image.hq.name == f"{image.name}.png"
        assert (image.size, image.target, image.prompt) == ((16, 16), (64, 64), "")
    assert benchmark.has_ground_truth


def test_unpaired_names_are_refused_and_named_even_where_the_counts_agree(tmp_path: Path) -> None:
    write_pairs(tmp_path, ["a", "b"])
    (tmp_path / "hq" / "b.png").rename(tmp_path / "hq" / "z.png")
    with pytest.raises(UserError, match=r"b\.png without HR; z\.png without LR"):
        load_benchmark(config(tmp_path))


def test_the_count_is_checked_unless_it_is_null(tmp_path: Path) -> None:
    write_pairs(tmp_path, ["a", "b"])
    with pytest.raises(UserError, match=r"has 93 images, but .* has 2.*benchmark\.allow_incomplete=true"):
        load_benchmark(config(tmp_path, count=93))
    assert len(load_benchmark(config(tmp_path, count=2)).images) == 2
    incomplete = load_benchmark(config(tmp_path, count=93, allow_incomplete=True))
    assert (len(incomplete.images), incomplete.notes) == (2, ("2 images where the benchmark has 93",))


def test_the_flag_takes_the_pairs_there_are(tmp_path: Path) -> None:
    write_pairs(tmp_path, ["a", "b", "c", "d"])
    (tmp_path / "hq" / "b.png").rename(tmp_path / "hq" / "z.png")
    save(tmp_path / "hq" / "c.png", picture(64, 60, 0))
    taken = load_benchmark(config(tmp_path, allow_incomplete=True))
    assert [image.name for image in taken.images] == ["a", "d"]
    assert [s.name for s in taken.skipped] == ["c"]
    assert "b.png without HR; z.png without LR" in taken.notes[0]
    assert not taken.checked


def test_the_benchmark_s_own_sizes_are_checked(tmp_path: Path) -> None:
    write_pairs(tmp_path, ["a", "b"])
    with pytest.raises(UserError, match=r"a\.png \(LR 16×16 where the benchmark has 128×128\)"):
        load_benchmark(config(tmp_path, lq_size=[128, 128]))
    assert len(load_benchmark(config(tmp_path, lq_size=[16, 16])).images) == 2
    let_pass = load_benchmark(config(tmp_path, lq_size=[128, 128], allow_incomplete=True))
    assert (len(let_pass.images), let_pass.notes) == (2, ("2 LR images are not 128×128",))


def shift(folder: Path) -> None:
    """Give every file the name of the next one."""
    files = sorted(folder.iterdir())
    content = [path.read_bytes() for path in files]
    for path, data in zip(files, content[1:] + content[:1], strict=True):
        path.write_bytes(data)


NAMES = ["ant", "bee", "cat", "dog", "elk"]


@pytest.mark.parametrize("moved", ["lq", "hq"])
def test_folders_that_are_paired_by_wrong_names_are_refused(tmp_path: Path, moved: str) -> None:
    write_pairs(tmp_path, NAMES)
    assert len(load_benchmark(config(tmp_path)).images) == 5
    shift(tmp_path / moved)
    with pytest.raises(UserError, match=r"show different things in \d images: .*ant"):
        load_benchmark(config(tmp_path))
    assert len(load_benchmark(config(tmp_path, allow_incomplete=True)).images) == 5


def test_one_wrong_pair_among_right_ones_is_found_and_named(tmp_path: Path) -> None:
    write_pairs(tmp_path, NAMES)
    (tmp_path / "hq" / "cat.png").write_bytes((tmp_path / "hq" / "elk.png").read_bytes())
    with pytest.raises(UserError, match=r"in 1 images: cat \((it shows what elk\.png shows|correlation)"):
        load_benchmark(config(tmp_path))


def test_lr_and_hr_in_each_other_s_place_are_refused(tmp_path: Path) -> None:
    write_pairs(tmp_path, ["a"])
    with pytest.raises(UserError, match="LR 64×64, HR 16×16"):
        load_benchmark(config(tmp_path, lq=str(tmp_path / "hq"), hq=str(tmp_path / "lq")))


def test_images_without_a_layout_are_not_judged_by_it(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for name in "abc":
        save(tmp_path / "lq" / f"{name}.png", rng.integers(0, 256, (32, 32, 3)).astype(np.uint8))
        save(tmp_path / "hq" / f"{name}.png", rng.integers(0, 256, (128, 128, 3)).astype(np.uint8))
    save(tmp_path / "lq" / "grey.png", np.full((32, 32, 3), 90, np.uint8))
    save(tmp_path / "hq" / "grey.png", np.full((128, 128, 3), 10, np.uint8))
    assert len(load_benchmark(config(tmp_path)).images) == 4


def test_too_small_images_are_set_aside(tmp_path: Path) -> None:
    write_pairs(tmp_path, ["a"])
    save(tmp_path / "lq" / "tiny.png", picture(2, 20, 0))
    save(tmp_path / "hq" / "tiny.png", picture(8, 80, 0))
    benchmark = load_benchmark(config(tmp_path))
    assert [image.name for image in benchmark.images] == ["a"]
    assert [(s.name, "80×8" in s.reason) for s in benchmark.skipped] == [("tiny", True)]


@pytest.mark.parametrize("upscale", ["abc", 0, -4, True, None])
def test_a_factor_that_is_none_is_refused(tmp_path: Path, upscale: object) -> None:
    write_pairs(tmp_path, ["a"])
    with pytest.raises(UserError, match="benchmark.upscale="):
        load_benchmark(config(tmp_path, upscale=upscale))


def test_images_one_folder_further_down_are_found(tmp_path: Path) -> None:
    write_pairs(tmp_path / "wild" / "images", ["a", "b"])
    benchmark = load_benchmark(config(tmp_path, lq=str(tmp_path / "wild" / "images" / "lq"), hq=None))
    assert len(benchmark.images) == 2
    (tmp_path / "only").mkdir()
    (tmp_path / "wild" / "images" / "lq").rename(tmp_path / "only" / "deeper")
    assert len(load_benchmark(config(tmp_path, lq=str(tmp_path / "only"), hq=None)).images) == 2


def test_wrong_sizes_are_refused_and_named(tmp_path: Path) -> None:
    write_pairs(tmp_path, ["a", "b"])
    save(tmp_path / "hq" / "b.png", picture(64, 60, 0))
    with pytest.raises(UserError, match=r"b\.png \(LR 16×16, HR 60×64\).*allow_incomplete=true"):
        load_benchmark(config(tmp_path))


def test_a_missing_folder_says_what_to_put_where(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"get the moon and unpack it so that .*lq holds the LR images"):
        load_benchmark(config(tmp_path))
    (tmp_path / "lq").mkdir()
    with pytest.raises(UserError, match="holds no image"):
        load_benchmark(config(tmp_path))


def test_a_folder_that_is_not_named_is_asked_for(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="benchmark.lq=<folder>"):
        load_benchmark(config(tmp_path, lq=None))


def test_two_files_of_one_stem_are_refused(tmp_path: Path) -> None:
    write_pairs(tmp_path, ["a"])
    for kind in ("lq", "hq"):
        Image.open(tmp_path / kind / "a.png").save(tmp_path / kind / "a.jpg")
    with pytest.raises(UserError, match=r"both a\.jpg and a\.png"):
        load_benchmark(config(tmp_path))


def test_a_corrupt_image_is_set_aside(tmp_path: Path) -> None:
    write_pairs(tmp_path, ["a", "b"])
    (tmp_path / "lq" / "a.png").write_bytes(b"not a picture")
    benchmark = load_benchmark(config(tmp_path, count=2))
    assert [image.name for image in benchmark.images] == ["b"]
    assert [skipped.name for skipped in benchmark.skipped] == ["a"]


def test_prompts_are_found_by_stem_and_missing_ones_are_null_and_counted(tmp_path: Path) -> None:
    write_pairs(tmp_path, ["a", "b"])
    (tmp_path / "prompts").mkdir()
    (tmp_path / "prompts" / "b.txt").write_text("a bee\n", encoding="utf-8")
    (tmp_path / "prompts" / "0.txt").write_text("first in the folder", encoding="utf-8")
    benchmark = load_benchmark(config(tmp_path, prompts=str(tmp_path / "prompts")))
    assert [image.prompt for image in benchmark.images] == ["", "a bee"]
    assert "null prompt for 1" in benchmark.prompts
    fixed = load_benchmark(config(tmp_path, prompts=str(tmp_path / "prompts")), fixed_prompt="a photograph")
    assert [image.prompt for image in fixed.images] == ["a photograph"] * 2


def test_a_missing_folder_of_prompts_is_stated_or_refused(tmp_path: Path) -> None:
    write_pairs(tmp_path, ["a"])
    missing = config(tmp_path, prompts=str(tmp_path / "nowhere"))
    benchmark = load_benchmark(missing)
    assert benchmark.images[0].prompt == ""
    assert "null prompt for all" in benchmark.prompts
    assert "nowhere" in benchmark.prompts
    with pytest.raises(UserError, match="nowhere"):
        load_benchmark(missing, prompts_required=True)


def test_a_benchmark_without_ground_truth(tmp_path: Path) -> None:
    write_pairs(tmp_path, ["a"])
    assert not load_benchmark(config(tmp_path, hq=None)).has_ground_truth


def test_the_size_follows_the_exif_orientation(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(np.zeros((10, 20, 3), np.uint8)).save(tmp_path / "a.jpg", exif=exif)
    assert image_size(tmp_path / "a.jpg") == (20, 10)

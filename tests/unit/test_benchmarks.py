"""Benchmarks: pairing by name, counts, sizes, prompts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from tiny_checkpoint import picture, save, write_pairs

from dit4sr.errors import UserError
from dit4sr.evaluation.benchmarks import image_size, load_benchmark


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
    with pytest.raises(UserError, match=r"has 93 images, but .* has 2.*benchmark\.count=null"):
        load_benchmark(config(tmp_path, count=93))
    assert len(load_benchmark(config(tmp_path, count=2)).images) == 2


def test_wrong_sizes_are_refused_and_named(tmp_path: Path) -> None:
    write_pairs(tmp_path, ["a", "b"])
    save(tmp_path / "hq" / "b.png", picture(64, 60, 0))
    with pytest.raises(UserError, match=r"b\.png \(LR 16×16, HR 60×64\)"):
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

"""The verb restore, on tiny random networks and real files."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from restoring import restore
from tiny_checkpoint import compose_verb, load, picture, save

from dit4sr.errors import UserError
from dit4sr.restoration.run import run


def test_a_folder_keeps_its_folders_and_sizes(tmp_path: Path, checkpoint: Path) -> None:
    sizes = {"a.png": (16, 31), "deep/er/b.png": (40, 17), "deep/c.png": (16, 16)}
    for name, size in sizes.items():
        save(tmp_path / "in" / name, picture(*size, 0))
    Image.fromarray(picture(20, 20, 1)).save(tmp_path / "in" / "d.jpg")
    (tmp_path / "in" / "notes.txt").write_text("no photo")
    assert restore(tmp_path / "in", tmp_path / "out", checkpoint) == 0
    found = {p.relative_to(tmp_path / "out").as_posix() for p in (tmp_path / "out").rglob("*") if p.is_file()}
    assert found == {*sizes, "d.png"}
    for name, (height, width) in sizes.items():
        assert load(tmp_path / "out" / name).shape == (4 * height, 4 * width, 3)


def test_recursive_can_be_switched_off(tmp_path: Path, checkpoint: Path) -> None:
    save(tmp_path / "in" / "a.png", picture(16, 16, 0))
    save(tmp_path / "in" / "deep" / "b.png", picture(16, 16, 0))
    assert restore(tmp_path / "in", tmp_path / "out", checkpoint, "recursive=false") == 0
    assert [p.name for p in (tmp_path / "out").rglob("*")] == ["a.png"]


def test_a_photo_s_noise_depends_on_its_name_and_the_seed_alone(tmp_path: Path, checkpoint: Path) -> None:
    image = picture(16, 16, 0)
    for name in ("a", "b", "c"):
        save(tmp_path / "in" / f"{name}.png", image)
    save(tmp_path / "alone" / "b.png", image)
    assert restore(tmp_path / "in", tmp_path / "all", checkpoint) == 0
    assert restore(tmp_path / "alone", tmp_path / "one", checkpoint) == 0
    assert restore(tmp_path / "in" / "b.png", tmp_path / "file", checkpoint) == 0
    assert restore(tmp_path / "alone", tmp_path / "other", checkpoint, "seed=1") == 0
    b = load(tmp_path / "all" / "b.png")
    assert np.array_equal(b, load(tmp_path / "one" / "b.png"))
    assert np.array_equal(b, load(tmp_path / "file" / "b.png"))
    assert not np.array_equal(b, load(tmp_path / "all" / "a.png"))
    assert not np.array_equal(b, load(tmp_path / "other" / "b.png"))


def test_a_glob(tmp_path: Path, checkpoint: Path) -> None:
    for name in ("x/a1.png", "x/b1.png", "y/a2.png"):
        save(tmp_path / "in" / name, picture(16, 16, 0))
    assert restore(f"{tmp_path}/in/*/a*.png", tmp_path / "out", checkpoint) == 0
    assert {p.relative_to(tmp_path / "out").as_posix() for p in (tmp_path / "out").rglob("*.png")} == {
        "x/a1.png",
        "y/a2.png",
    }


def test_bad_photos_are_listed_and_the_others_restored(
    tmp_path: Path, checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save(tmp_path / "in" / "good.png", picture(16, 16, 0))
    save(tmp_path / "in" / "small.png", picture(15, 40, 0))
    (tmp_path / "in" / "broken.png").write_bytes(b"\x89PNG")
    assert restore(tmp_path / "in", tmp_path / "out", checkpoint) == 1
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["good.png"]
    said = capsys.readouterr().out
    assert "1 of 3 photos restored" in said
    assert "small.png: 40×15 is too small: both sides need 16 pixels" in said
    assert "broken.png: " in said


def test_what_is_there_is_skipped_unless_told_otherwise(
    tmp_path: Path, checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save(tmp_path / "in" / "a.png", picture(16, 16, 0))
    save(tmp_path / "out" / "a.png", picture(8, 8, 0))
    assert restore(tmp_path / "in", tmp_path / "out", checkpoint) == 0
    assert load(tmp_path / "out" / "a.png").shape == (8, 8, 3)
    assert "1 skipped" in capsys.readouterr().out
    # With nothing to do no network is loaded; one that is not there is told of all the same.
    (tmp_path / "unread.ckpt").write_text("not looked into")
    assert restore(tmp_path / "in", tmp_path / "out", tmp_path / "unread.ckpt") == 0
    with pytest.raises(UserError, match="no checkpoint at"):
        restore(tmp_path / "in", tmp_path / "out", tmp_path / "missing.ckpt")
    assert restore(tmp_path / "in", tmp_path / "out", checkpoint, "overwrite=true") == 0
    assert load(tmp_path / "out" / "a.png").shape == (64, 64, 3)


def test_results_inside_the_input_are_not_restored_again(tmp_path: Path, checkpoint: Path) -> None:
    save(tmp_path / "in" / "a.png", picture(16, 16, 0))
    for _ in range(2):
        assert restore(tmp_path / "in", tmp_path / "in" / "restored", checkpoint) == 0
    assert [p.name for p in (tmp_path / "in" / "restored").rglob("*")] == ["a.png"]


def test_two_photos_of_one_stem_are_refused_before_anything_is_written(tmp_path: Path, checkpoint: Path) -> None:
    save(tmp_path / "in" / "a.png", picture(16, 16, 0))
    Image.fromarray(picture(16, 16, 0)).save(tmp_path / "in" / "a.jpg")
    with pytest.raises(UserError, match=r"a\.(png|jpg) and a\.(png|jpg) would both be restored to"):
        restore(tmp_path / "in", tmp_path / "out", checkpoint)
    assert not (tmp_path / "out").exists()


def test_a_photo_is_never_replaced(tmp_path: Path, checkpoint: Path) -> None:
    save(tmp_path / "in" / "a.png", picture(16, 16, 0))
    with pytest.raises(UserError, match="would replace the photo"):
        restore(tmp_path / "in", tmp_path / "in", checkpoint, "overwrite=true")
    assert load(tmp_path / "in" / "a.png").shape == (16, 16, 3)


def test_nothing_to_restore(tmp_path: Path, checkpoint: Path) -> None:
    (tmp_path / "in").mkdir()
    with pytest.raises(UserError, match="holds no photo"):
        restore(tmp_path / "in", tmp_path / "out", checkpoint)
    with pytest.raises(UserError, match="no such file or folder"):
        restore(tmp_path / "nowhere", tmp_path / "out", checkpoint)
    with pytest.raises(UserError, match="input=<photo"):
        run(compose_verb("restore"), set())
    with pytest.raises(UserError, match="upscale=0.5"):
        restore(tmp_path / "in", tmp_path / "out", checkpoint, "upscale=0.5")
    save(tmp_path / "in" / "a.png", picture(16, 16, 0))
    with pytest.raises(UserError, match="no checkpoint at"):
        restore(tmp_path / "in", tmp_path / "out", tmp_path / "missing.ckpt")
    assert not (tmp_path / "out").exists()


def test_output_wins_over_out(tmp_path: Path) -> None:
    assert compose_verb("restore", "out=there").output == "there"
    assert compose_verb("restore", "out=there", "output=here").output == "here"


def test_any_upscale(tmp_path: Path, checkpoint: Path) -> None:
    save(tmp_path / "a.png", picture(17, 30, 0))
    assert restore(tmp_path / "a.png", tmp_path / "out", checkpoint, "upscale=2.5") == 0
    assert load(tmp_path / "out" / "a.png").shape == (42, 75, 3)


def test_transparency_and_orientation(tmp_path: Path, checkpoint: Path) -> None:
    alpha = np.full((16, 24), 255, np.uint8)
    alpha[:, :12] = 0
    save(tmp_path / "in" / "a.png", np.dstack([picture(16, 24, 0), alpha]))
    exif = Image.Exif()
    exif[0x0112] = 8
    Image.fromarray(picture(16, 24, 0)).save(tmp_path / "in" / "turned.jpg", exif=exif)
    assert restore(tmp_path / "in", tmp_path / "out", checkpoint) == 0
    restored = load(tmp_path / "out" / "a.png")
    assert restored.shape == (64, 96, 4)
    assert (restored[:, :40, 3] == 0).all()
    assert (restored[:, 56:, 3] == 255).all()
    assert load(tmp_path / "out" / "turned.png").shape == (96, 64, 3)


def test_the_settings_travel_in_the_picture(tmp_path: Path, checkpoint: Path) -> None:
    save(tmp_path / "in" / "a.png", picture(16, 16, 0))
    (tmp_path / "in" / "a.txt").write_text("ein Schloß\n", encoding="utf-8")
    assert restore(tmp_path / "in", tmp_path / "out", checkpoint, "seed=5") == 0
    facts = json.loads(Image.open(tmp_path / "out" / "a.png").text["dit4sr"])
    assert (facts["prompt"], facts["seed"], facts["step"], facts["photo"]) == ("ein Schloß", 5, 7, "a.png")
    assert facts["model"]["name"] == "dit4sr"
    assert facts["sampler"]["steps"] == 1


def test_prompts_change_the_result(tmp_path: Path, checkpoint: Path) -> None:
    save(tmp_path / "in" / "a.png", picture(16, 16, 0))
    assert restore(tmp_path / "in", tmp_path / "none", checkpoint) == 0
    (tmp_path / "in" / "a.txt").write_text("a red barn")
    assert restore(tmp_path / "in", tmp_path / "caption", checkpoint) == 0
    assert restore(tmp_path / "in", tmp_path / "fixed", checkpoint, "prompt=fixed", "prompt.fixed='a red barn'") == 0
    assert restore(tmp_path / "in", tmp_path / "null", checkpoint, "prompt=fixed", "prompt.fixed=''") == 0
    none, caption, fixed, null = (load(tmp_path / k / "a.png") for k in ("none", "caption", "fixed", "null"))
    assert not np.array_equal(none, caption)
    assert np.array_equal(caption, fixed)
    assert np.array_equal(none, null)


def test_the_folder_of_a_run_stands_for_its_last_checkpoint(tmp_path: Path, checkpoint: Path) -> None:
    save(tmp_path / "a.png", picture(16, 16, 0))
    assert restore(tmp_path / "a.png", tmp_path / "out", checkpoint.parent.parent) == 0
    assert restore(tmp_path / "a.png", tmp_path / "same", checkpoint) == 0
    assert np.array_equal(load(tmp_path / "out" / "a.png"), load(tmp_path / "same" / "a.png"))

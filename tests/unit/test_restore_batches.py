"""restore: batches of one size change nothing, and what is written is what a photographer expects."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, PngImagePlugin
from restoring import restore
from tiny_checkpoint import compose_verb, load, picture, save, write_checkpoint

from dit4sr.errors import UserError
from dit4sr.restoration.restorer import Restorer
from dit4sr.restoration.run import run
from dit4sr.restoration.transparency import fill_transparent


def test_the_batch_a_photo_is_in_changes_its_result_by_rounding_alone(
    tmp_path: Path, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(5):
        save(tmp_path / "in" / f"same{number}.png", picture(20, 24, number))
        (tmp_path / "in" / f"same{number}.txt").write_text(f"photo {number}")
    save(tmp_path / "in" / "other.png", picture(24, 20, 9))
    save(tmp_path / "in" / "deep" / "same.png", picture(20, 24, 7))
    sizes: list[int] = []
    together = Restorer.restore_batch

    def recorded(self: Restorer, lqs: list[np.ndarray], *arguments: object, **options: object) -> list[np.ndarray]:
        sizes.append(len(lqs))
        return together(self, lqs, *arguments, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(Restorer, "restore_batch", recorded)
    settings = ("sampler.steps=3", "sampler.guidance=3")
    for size in (1, 4, 16):
        assert restore(tmp_path / "in", tmp_path / str(size), checkpoint, f"batch_size={size}", *settings) == 0
    assert sizes == [1] * 7 + [4, 1, 2] + [6, 1]
    alone = {p.relative_to(tmp_path / "1"): load(p) for p in (tmp_path / "1").rglob("*.png")}
    assert len(alone) == 7
    for folder in ("4", "16"):
        for name, pixels in alone.items():
            together_with_others = load(tmp_path / folder / name)
            assert np.abs(together_with_others.astype(int) - pixels).max() <= 1, (folder, name)


def test_a_bad_photo_inside_a_batch_spoils_none_of_it(
    tmp_path: Path, checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("a", "c"):
        save(tmp_path / "in" / f"{name}.png", picture(20, 24, 0))
    whole = (tmp_path / "in" / "a.png").read_bytes()
    (tmp_path / "in" / "b.png").write_bytes(whole[: len(whole) // 2])
    assert restore(tmp_path / "in", tmp_path / "out", checkpoint, "batch_size=3") == 1
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["a.png", "c.png"]
    assert "b.png: cannot be decoded" in capsys.readouterr().out


def test_too_little_memory_for_a_batch_is_enough_for_single_photos(
    tmp_path: Path, checkpoint: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("a", "b", "huge"):
        save(tmp_path / "in" / f"{name}.png", picture(20, 40 if name == "huge" else 24, 0))
    real = Restorer.restore_batch

    def scarce(self: Restorer, lqs: list[np.ndarray], *arguments: object) -> list[np.ndarray]:
        if len(lqs) > 1 or lqs[0].shape[1] > 24:
            raise RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory")
        return real(self, lqs, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(Restorer, "restore_batch", scarce)
    assert restore(tmp_path / "in", tmp_path / "out", checkpoint, "batch_size=2") == 1
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["a.png", "b.png"]
    assert "huge.png: not enough memory" in capsys.readouterr().out


def test_grey_photos_stay_neutral_and_colour_stays_colour(tmp_path: Path, checkpoint: Path) -> None:
    save(tmp_path / "in" / "grey.png", picture(16, 20, 0)[..., 0])
    save(tmp_path / "in" / "colour.png", picture(16, 20, 0))
    assert restore(tmp_path / "in", tmp_path / "out", checkpoint) == 0
    grey, colour = load(tmp_path / "out" / "grey.png"), load(tmp_path / "out" / "colour.png")
    assert grey.shape == colour.shape == (64, 80, 3)
    assert (grey[..., 0] == grey[..., 1]).all() and (grey[..., 1] == grey[..., 2]).all()
    assert not (colour[..., 0] == colour[..., 1]).all()


def test_results_say_srgb_and_carry_no_stale_orientation(tmp_path: Path, checkpoint: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    (tmp_path / "in").mkdir()
    Image.fromarray(picture(16, 24, 0)).save(tmp_path / "in" / "a.jpg", exif=exif)
    assert restore(tmp_path / "in", tmp_path / "out", checkpoint) == 0
    with Image.open(tmp_path / "out" / "a.png") as result:
        assert result.info["srgb"] == 0
        assert "icc_profile" not in result.info
        assert 0x0112 not in result.getexif()
        assert result.size == (64, 96)


def test_unseen_pixels_take_the_colour_of_the_nearest_seen_one() -> None:
    rgb = np.zeros((4, 6, 3), np.uint8)
    rgb[:, :3] = (200, 10, 30)
    alpha = np.zeros((4, 6), np.uint8)
    alpha[:, :3] = (255, 255, 1)
    assert (fill_transparent(rgb, alpha) == (200, 10, 30)).all()
    assert np.array_equal(fill_transparent(rgb, np.zeros_like(alpha)), rgb)


def test_a_result_that_would_be_too_large_is_refused(
    tmp_path: Path, checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save(tmp_path / "in" / "large.png", picture(40, 50, 0))
    save(tmp_path / "in" / "small.png", picture(16, 16, 0))
    header = struct.pack(">4sIIBBBBB", b"IHDR", 20000, 20000, 8, 2, 0, 0, 0)
    (tmp_path / "in" / "bomb.png").write_bytes(
        b"\x89PNG\r\n\x1a\n\0\0\0\x0d"
        + header
        + struct.pack(">I", zlib.crc32(header))
        + b"\0\0\0\0IDAT\x35\xaf\x06\x1e"
    )
    assert restore(tmp_path / "in", tmp_path / "out", checkpoint, "max_megapixels=0.03") == 1
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["small.png"]
    said = capsys.readouterr().out
    assert "large.png: 50×40 enlarged 4 times has 0.032 megapixels: lower upscale" in said
    assert "bomb.png: 20000×20000 is more than 134 megapixels" in said or "bomb.png: more than 134 megapixels" in said


def test_half_a_result_is_not_done(tmp_path: Path, checkpoint: Path) -> None:
    for name in ("empty", "cut", "whole", "text"):
        save(tmp_path / "in" / f"{name}.png", picture(16, 16, 0))
        save(tmp_path / "out" / f"{name}.png", picture(8, 8, 0))
    (tmp_path / "out" / "empty.png").write_bytes(b"")
    cut = tmp_path / "out" / "cut.png"
    cut.write_bytes(cut.read_bytes()[:-3])
    (tmp_path / "out" / "text.png").write_text("no picture at all, but long enough to be one")
    assert restore(tmp_path / "in", tmp_path / "out", checkpoint) == 0
    assert {p.stem: load(p).shape[0] for p in (tmp_path / "out").iterdir()} == {
        "empty": 64,
        "cut": 64,
        "text": 64,
        "whole": 8,
    }


def test_results_of_other_settings_are_named(
    tmp_path: Path, checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save(tmp_path / "in" / "a.png", picture(16, 16, 0))
    assert restore(tmp_path / "in", tmp_path / "out", checkpoint, "seed=1", "upscale=2") == 0
    capsys.readouterr()
    assert restore(tmp_path / "in", tmp_path / "out", checkpoint, "seed=1", "upscale=2") == 0
    assert "other settings" not in capsys.readouterr().out
    assert restore(tmp_path / "in", tmp_path / "out", checkpoint, "upscale=3", "sampler.steps=2") == 0
    said = capsys.readouterr().out
    assert "1 of those skipped were made with other settings, such as sampler.steps=1, upscale=2, seed=1" in said
    assert load(tmp_path / "out" / "a.png").shape[0] == 32
    # With something to restore the model is known too.
    save(tmp_path / "in" / "b.png", picture(16, 16, 0))
    other = tmp_path / "other.ckpt"
    write_checkpoint(other, step=8)
    assert restore(tmp_path / "in", tmp_path / "out", other, "seed=1", "upscale=2") == 0
    assert "step=7" in capsys.readouterr().out


def test_a_picture_of_somebody_else_s_is_a_result_of_no_known_settings(tmp_path: Path, checkpoint: Path) -> None:
    save(tmp_path / "in" / "a.png", picture(16, 16, 0))
    info = PngImagePlugin.PngInfo()
    info.add_itxt("dit4sr", "not JSON")
    (tmp_path / "out").mkdir()
    Image.fromarray(picture(8, 8, 0)).save(tmp_path / "out" / "a.png", pnginfo=info)
    assert restore(tmp_path / "in", tmp_path / "out", checkpoint) == 0


@pytest.mark.parametrize(
    "override",
    ["upscale=abc", "upscale=.nan", "upscale=0.5", "seed=x", "seed=1.5", "batch_size=0", "batch_size=true",
     "overwrite=perhaps", "recursive=2", "max_megapixels=many"],
)  # fmt: skip
def test_values_that_mean_nothing_are_one_line(tmp_path: Path, checkpoint: Path, override: str) -> None:
    save(tmp_path / "in" / "a.png", picture(16, 16, 0))
    with pytest.raises(UserError, match=f"^{override.split('=')[0]}=.*: give "):
        restore(tmp_path / "in", tmp_path / "out", checkpoint, override)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("override", ["sampler.steps=abc", "sampler.guidance=much", "sampler.tile_batch=2.5"])
def test_samplers_that_mean_nothing_are_one_line(tmp_path: Path, checkpoint: Path, override: str) -> None:
    save(tmp_path / "in" / "a.png", picture(16, 16, 0))
    with pytest.raises(UserError, match=f"^{override}: give a "):
        config = compose_verb("restore", "device=cpu", override)
        config.input, config.output, config.ckpt = str(tmp_path / "in"), str(tmp_path / "out"), str(checkpoint)
        run(config, {"input", "output", "ckpt", override.split("=")[0]})
    assert not (tmp_path / "out").exists()

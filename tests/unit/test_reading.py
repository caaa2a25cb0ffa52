"""Photographs of every kind are read as they look."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageCms
from tiny_checkpoint import picture

from dit4sr.data.images import UnreadableImage
from dit4sr.restoration.reading import read_photograph

RGB = picture(24, 32, 0)


def written(path: Path, image: Image.Image, **options: object) -> Path:
    image.save(path, **options)
    return path


def test_plain(tmp_path: Path) -> None:
    for suffix in ("png", "bmp", "tif"):
        photo = read_photograph(written(tmp_path / f"a.{suffix}", Image.fromarray(RGB)))
        assert np.array_equal(photo.rgb, RGB)
        assert photo.alpha is None


def test_grey_and_bilevel_and_palette(tmp_path: Path) -> None:
    grey = RGB[..., 0]
    photo = read_photograph(written(tmp_path / "l.png", Image.fromarray(grey)))
    assert np.array_equal(photo.rgb, np.repeat(grey[..., None], 3, -1))
    bits = Image.fromarray(grey).convert("1")
    assert set(np.unique(read_photograph(written(tmp_path / "1.png", bits)).rgb)) == {0, 255}
    palette = Image.fromarray(RGB).quantize(16)
    photo = read_photograph(written(tmp_path / "p.png", palette))
    assert np.array_equal(photo.rgb, np.asarray(palette.convert("RGB")))


def test_16_bit_grey_keeps_its_brightness(tmp_path: Path) -> None:
    values = np.array([[0, 257, 32896], [65535, 128, 129]], np.uint16)
    photo = read_photograph(written(tmp_path / "a.png", Image.fromarray(values)))
    assert photo.rgb[..., 1].tolist() == [[0, 1, 128], [255, 0, 1]]


def test_float_grey(tmp_path: Path) -> None:
    unit = Image.fromarray(np.linspace(0, 1, 6, dtype=np.float32).reshape(2, 3))
    assert read_photograph(written(tmp_path / "a.tif", unit)).rgb[..., 0].tolist() == [[0, 51, 102], [153, 204, 255]]
    radiance = Image.fromarray(np.full((4, 4), 7.0, np.float32))
    with pytest.raises(UnreadableImage, match="outside 0…1"):
        read_photograph(written(tmp_path / "b.tif", radiance))


def test_transparency_is_kept_apart(tmp_path: Path) -> None:
    alpha = np.full(RGB.shape[:2], 255, np.uint8)
    opaque = Image.fromarray(np.dstack([RGB, alpha]))
    assert read_photograph(written(tmp_path / "a.png", opaque)).alpha is None
    alpha[:5] = 40
    photo = read_photograph(written(tmp_path / "b.png", Image.fromarray(np.dstack([RGB, alpha]))))
    assert np.array_equal(photo.rgb, RGB)
    assert photo.alpha is not None
    assert np.array_equal(photo.alpha, alpha)
    grey = read_photograph(written(tmp_path / "c.png", Image.fromarray(np.dstack([RGB[..., 0], alpha]), "LA")))
    assert grey.alpha is not None
    assert np.array_equal(grey.rgb[..., 2], RGB[..., 0])


def test_a_transparent_palette_colour(tmp_path: Path) -> None:
    palette = Image.fromarray(RGB).quantize(4)
    index = palette.getpixel((0, 0))
    photo = read_photograph(written(tmp_path / "a.png", palette, transparency=index))
    assert photo.alpha is not None
    assert np.array_equal(photo.alpha == 0, np.asarray(palette) == index)


def test_cmyk(tmp_path: Path) -> None:
    flat = Image.new("CMYK", (16, 16), (255, 0, 0, 0))
    rgb = read_photograph(written(tmp_path / "a.jpg", flat, quality=95)).rgb
    assert rgb[8, 8] == pytest.approx([0, 255, 255], abs=3)


def test_the_exif_orientation_is_applied(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned clockwise by a quarter
    photo = read_photograph(written(tmp_path / "a.png", Image.fromarray(RGB), exif=exif))
    assert np.array_equal(photo.rgb, np.rot90(RGB, -1))


def test_a_colour_profile_is_converted_to_srgb(tmp_path: Path) -> None:
    # A profile that says the same as sRGB changes nothing; one of another kind of image is ignored.
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    same = read_photograph(written(tmp_path / "a.png", Image.fromarray(RGB), icc_profile=srgb)).rgb
    assert np.abs(same.astype(int) - RGB).max() <= 1
    lab = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes()
    for profile in (lab, b"nonsense"):
        photo = read_photograph(written(tmp_path / "b.png", Image.fromarray(RGB), icc_profile=profile))
        assert np.array_equal(photo.rgb, RGB)


def test_a_wide_gamut_profile_changes_the_values(tmp_path: Path) -> None:
    # sRGB with red and green primaries exchanged: what the file calls red is green.
    data = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    count = int.from_bytes(data[128:132], "big")
    entries = {bytes(data[i : i + 4]): i for i in range(132, 132 + 12 * count, 12)}
    red, green = entries[b"rXYZ"], entries[b"gXYZ"]
    data[red + 4 : red + 12], data[green + 4 : green + 12] = data[green + 4 : green + 12], data[red + 4 : red + 12]
    red_image = Image.new("RGB", (8, 8), (255, 0, 0))
    rgb = read_photograph(written(tmp_path / "a.png", red_image, icc_profile=bytes(data))).rgb
    assert rgb[4, 4] == pytest.approx([0, 255, 0], abs=3)


@pytest.mark.parametrize("broken", [b"", b"not a picture", b"\x89PNG\r\n\x1a\n" + b"\0" * 40])
def test_what_is_no_image_is_unreadable(tmp_path: Path, broken: bytes) -> None:
    (tmp_path / "a.png").write_bytes(broken)
    with pytest.raises(UnreadableImage):
        read_photograph(tmp_path / "a.png")


def test_a_truncated_image_is_unreadable(tmp_path: Path) -> None:
    for name in ("a.png", "a.jpg"):
        path = written(tmp_path / name, Image.fromarray(picture(120, 160, 2)))
        path.write_bytes(path.read_bytes()[:-400])
        with pytest.raises(UnreadableImage):
            read_photograph(path)


def test_a_bomb_is_refused_by_its_header(tmp_path: Path) -> None:
    path = written(tmp_path / "a.png", Image.new("L", (400, 300)))
    with pytest.raises(UnreadableImage, match="megapixels"):
        read_photograph(path, max_pixels=400 * 300 - 1)
    assert read_photograph(path, max_pixels=400 * 300).rgb.shape == (300, 400, 3)

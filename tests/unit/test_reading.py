"""Photographs of every kind are read as they look."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image, ImageCms
from tiny_checkpoint import picture

from dit4sr.data.images import UnreadableImage
from dit4sr.restoration.reading import AVIF, read_photograph

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


def deep_png(path: Path, values: np.ndarray, chunks: bytes = b"") -> Path:
    """Write a PNG of 16 bits a channel by the format's definition: (H, W, 1…4) uint16."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    height, width, channels = values.shape
    header = struct.pack(">IIBBBBB", width, height, 16, {1: 0, 2: 4, 3: 2, 4: 6}[channels], 0, 0, 0)
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    pieces = [chunk(b"IHDR", header), chunks, chunk(b"IDAT", zlib.compress(rows)), chunk(b"IEND", b"")]
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(pieces))
    return path


def test_16_bit_colour_is_rounded_to_nearest(tmp_path: Path) -> None:
    values = np.random.default_rng(0).integers(0, 65536, (12, 20, 4)).astype(np.uint16)
    values[0, 0] = (65535, 0, 65407, 65535)
    expected = np.rint(values / 257).astype(np.uint8)
    rgb = values[..., :3]
    assert np.array_equal(read_photograph(deep_png(tmp_path / "rgb.png", rgb)).rgb, expected[..., :3])
    rgba = read_photograph(deep_png(tmp_path / "rgba.png", values))
    assert np.array_equal(rgba.rgb, expected[..., :3])
    assert np.array_equal(rgba.alpha, expected[..., 3])
    grey = read_photograph(deep_png(tmp_path / "la.png", values[..., :2]))
    assert np.array_equal(grey.rgb, np.repeat(expected[..., :1], 3, -1))
    assert np.array_equal(grey.alpha, expected[..., 1])
    for byteorder in "<>":
        for name, options in (("plain", {}), ("packed", {"compression": "zlib"}), ("tiled", {"tile": (16, 16)})):
            path = tmp_path / f"{name}.tif"
            tifffile.imwrite(path, rgb, photometric="rgb", byteorder=byteorder, **options)
            assert np.array_equal(read_photograph(path).rgb, expected[..., :3]), (byteorder, name)
    tifffile.imwrite(tmp_path / "a.tif", values, photometric="rgb", extrasamples=["unassalpha"])
    assert np.array_equal(read_photograph(tmp_path / "a.tif").alpha, expected[..., 3])
    tifffile.imwrite(tmp_path / "turned.tif", rgb, photometric="rgb", extratags=[(274, 3, 1, 6, True)])
    assert np.array_equal(read_photograph(tmp_path / "turned.tif").rgb, np.rot90(expected[..., :3], -1))


def test_16_bit_tiffs_that_mean_something_else(tmp_path: Path) -> None:
    values = np.array([[0, 257, 32896], [65535, 128, 129]], np.uint16)
    tifffile.imwrite(tmp_path / "inverted.tif", values, photometric="miniswhite")
    assert read_photograph(tmp_path / "inverted.tif").rgb[..., 0].tolist() == [[255, 254, 127], [0, 255, 254]]
    planes = np.zeros((3, 8, 8), np.uint16)
    tifffile.imwrite(tmp_path / "planes.tif", planes, photometric="rgb", planarconfig="separate")
    with pytest.raises(UnreadableImage, match="interleaved"):
        read_photograph(tmp_path / "planes.tif")
    tifffile.imwrite(tmp_path / "float.tif", np.zeros((8, 8, 3), np.float32), photometric="rgb")
    with pytest.raises(UnreadableImage, match="a TIFF of a kind"):
        read_photograph(tmp_path / "float.tif")


def test_a_16_bit_colour_that_stands_for_transparency(tmp_path: Path) -> None:
    values = np.full((4, 4, 3), 1000, np.uint16)
    values[0, 0] = (1000, 1000, 1001)
    key = b"tRNS" + struct.pack(">HHH", 1000, 1000, 1001)
    chunk = struct.pack(">I", 6) + key + struct.pack(">I", zlib.crc32(key))
    photo = read_photograph(deep_png(tmp_path / "a.png", values, chunk))
    assert photo.alpha is not None
    assert (photo.alpha == 0).sum() == 1 and photo.alpha[0, 0] == 0


def test_the_first_of_several_frames(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (24, 16), (40, 40, 40)), Image.new("RGB", (24, 16), (220, 220, 220))]
    formats = {"gif": "GIF", "webp": "WEBP", "png": "PNG", "tif": "TIFF", "jpg": "MPO"}
    if AVIF:
        formats["avif"] = "AVIF"
    for suffix, kind in formats.items():
        path = tmp_path / f"a.{suffix}"
        frames[0].save(path, kind, save_all=True, append_images=frames[1:])
        assert read_photograph(path).rgb[8, 8] == pytest.approx([40, 40, 40], abs=3), suffix


def test_lab(tmp_path: Path) -> None:
    profiles = ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB")
    lab = ImageCms.profileToProfile(Image.fromarray(RGB), *profiles, outputMode="LAB")
    photo = read_photograph(written(tmp_path / "a.tif", lab))
    assert np.abs(photo.rgb.astype(int) - RGB).mean() < 2


def test_cmyk(tmp_path: Path) -> None:
    cyan = Image.new("CMYK", (16, 16), (255, 0, 0, 0))
    path = written(tmp_path / "a.jpg", cyan, quality=95)
    assert b"Adobe" in path.read_bytes()  # such a file, whose stored values are inverted
    for file in (path, written(tmp_path / "a.tif", cyan)):
        assert read_photograph(file).rgb[8, 8] == pytest.approx([0, 255, 255], abs=3)


def test_a_cmyk_profile_decides_over_the_plain_formula(tmp_path: Path) -> None:
    cyan = Image.new("CMYK", (16, 16), (255, 0, 0, 0))
    for name in ("a.jpg", "a.tif"):
        photo = read_photograph(written(tmp_path / name, cyan, icc_profile=cmyk_profile()))
        assert photo.rgb[8, 8] == pytest.approx([119, 119, 119], abs=4)  # sRGB of L* = 50


UPRIGHT = {
    1: RGB,
    2: RGB[:, ::-1],
    3: RGB[::-1, ::-1],
    4: RGB[::-1],
    5: RGB.transpose(1, 0, 2),
    6: np.rot90(RGB, -1),
    7: RGB[::-1, ::-1].transpose(1, 0, 2),
    8: np.rot90(RGB),
}


@pytest.mark.parametrize("orientation", UPRIGHT)
def test_the_exif_orientation_is_applied(tmp_path: Path, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    alpha = Image.fromarray(RGB[..., 0])
    for suffix, options in (("png", {}), ("tif", {}), ("webp", {"lossless": True, "exact": True})):
        image = Image.fromarray(RGB)
        image.putalpha(alpha)
        photo = read_photograph(written(tmp_path / f"a.{suffix}", image, exif=exif, **options))
        assert np.array_equal(photo.rgb, UPRIGHT[orientation]), suffix
        assert np.array_equal(photo.alpha, UPRIGHT[orientation][..., 0]), suffix


def test_broken_exif_is_no_reason_to_refuse_a_photo(tmp_path: Path) -> None:
    for broken in (b"Exif\0\0", b"Exif\0\0MM\0*\xff\xff\xff\xff", b"Exif\0\0II*\0\x08\0\0\0\xff\xff" + b"\x12" * 40):
        photo = read_photograph(written(tmp_path / "a.jpg", Image.fromarray(RGB), exif=broken, quality=98))
        assert photo.rgb.shape == RGB.shape


def test_a_colour_profile_is_converted_to_srgb(tmp_path: Path) -> None:
    # A profile that says the same as sRGB changes nothing; one of another kind of image is ignored.
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    same = read_photograph(written(tmp_path / "a.png", Image.fromarray(RGB), icc_profile=srgb)).rgb
    assert np.abs(same.astype(int) - RGB).max() <= 1
    lab = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes()
    for profile in (lab, b"nonsense"):
        photo = read_photograph(written(tmp_path / "b.png", Image.fromarray(RGB), icc_profile=profile))
        assert np.array_equal(photo.rgb, RGB)


def s15(value: float) -> bytes:
    return struct.pack(">i", round(value * 65536))


WHITE = s15(0.9642) + s15(1.0) + s15(0.8249)


def icc_profile(kind: bytes, space: bytes, connection: bytes, tags: dict[bytes, bytes]) -> bytes:
    """An ICC profile by its definition (ICC.1:2010, section 7)."""
    description = b"desc\0\0\0\0" + struct.pack(">I", 5) + b"test\0" + bytes(79)
    tags = {b"desc": description, b"wtpt": b"XYZ \0\0\0\0" + WHITE, **tags}
    table, data, offset = b"", b"", 128 + 4 + 12 * len(tags)
    for name, body in tags.items():
        table += name + struct.pack(">II", offset + len(data), len(body))
        data += body + bytes(-len(body) % 4)
    start = struct.pack(">I", offset + len(data)) + b"lcms" + struct.pack(">I", 0x02400000)
    header = start + kind + space + connection + bytes(12) + b"acsp" + bytes(28) + WHITE + bytes(48)
    return header + struct.pack(">I", len(tags)) + table + data


def grey_profile(gamma: float) -> bytes:
    """Grey of this gamma (section 8.4.2)."""
    curve = b"curv\0\0\0\0" + struct.pack(">IH", 1, round(gamma * 256))
    return icc_profile(b"mntr", b"GRAY", b"XYZ ", {b"kTRC": curve})


def cmyk_profile() -> bytes:
    """Inks of which each halves the lightness L* and none has a colour (section 10.10, a table of two points)."""
    identity = bytes(range(256))
    matrix = b"".join(s15(float(row == column)) for row in range(3) for column in range(3))
    corners = b"".join(bytes([round(255 / 2 ** bin(inks).count("1")), 128, 128]) for inks in range(16))
    table = b"mft1\0\0\0\0" + bytes([4, 3, 2, 0]) + matrix + identity * 4 + corners + identity * 3
    return icc_profile(b"prtr", b"CMYK", b"Lab ", {b"A2B0": table})


def test_a_grey_profile_says_how_light_the_greys_are(tmp_path: Path) -> None:
    grey = Image.new("L", (16, 16), 128)
    linear = grey_profile(1.0)
    with_alpha = Image.merge("LA", (grey, Image.new("L", (16, 16), 90)))
    deep = Image.fromarray(np.full((16, 16), 128 * 257, np.uint16))
    for name, image in (("l", grey), ("la", with_alpha), ("deep", deep)):
        photo = read_photograph(written(tmp_path / f"{name}.png", image, icc_profile=linear))
        assert photo.rgb[4, 4] == pytest.approx([188, 188, 188], abs=2), name  # sRGB of half the light
        assert photo.is_grey
    # A grey image may carry an RGB profile too.
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    photo = read_photograph(written(tmp_path / "rgb.png", grey, icc_profile=srgb))
    assert photo.rgb[4, 4].tolist() == [128, 128, 128]


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

"""Photographs of any kind → 8-bit sRGB, upright, with their transparency apart."""

from __future__ import annotations

import io
import warnings
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageCms, UnidentifiedImageError, features

from dit4sr.data.images import DECODING_ERRORS, MAX_PIXELS, UnreadableImage
from dit4sr.restoration.deep_colour import to_8_bits, whole_depth

AVIF = bool(features.check("avif"))  # a Pillow built without libavif cannot
SUFFIXES = (".png", ".jpg", ".jpeg", ".jfif", ".webp", ".tif", ".tiff", ".bmp", ".gif", *((".avif",) if AVIF else ()))
FORMATS = ("PNG", "JPEG", "WEBP", "TIFF", "BMP", "GIF", *(("AVIF",) if AVIF else ()))
UNREAD_SUFFIXES = frozenset(
    (".heic", ".heif", ".avif", ".jxl", ".jp2", ".dng", ".cr2", ".cr3", ".nef", ".arw", ".orf", ".raf", ".rw2", ".psd")
) - set(SUFFIXES)
"""Photographs too, but of formats that are not read here."""

DAMAGE = (*DECODING_ERRORS, TypeError, AttributeError, OverflowError, AssertionError)
"""What Pillow raises on broken files or on broken metadata of whole ones."""


@dataclass(frozen=True, eq=False)
class Photograph:
    """A photo as it looks.

    Attributes:
        rgb: uint8 (H, W, 3), sRGB.
        alpha: uint8 (H, W), 255 is opaque; None where all of it is.
    """

    rgb: NDArray[np.uint8] = field(repr=False)
    alpha: NDArray[np.uint8] | None = field(repr=False)

    @property
    def is_grey(self) -> bool:
        """Whether it has no colour anywhere."""
        red, green, blue = self.rgb[..., 0], self.rgb[..., 1], self.rgb[..., 2]
        return bool(np.array_equal(red, green) and np.array_equal(green, blue))


def read_photograph(path: Path, max_pixels: int = MAX_PIXELS) -> Photograph:
    """Read a PNG, JPEG, WebP, TIFF, BMP, GIF or AVIF file; of several frames the first.

    The EXIF orientation is applied; an embedded colour profile is converted to sRGB (perceptual intent); grey,
    palette, CMYK and Lab images become RGB, CMYK without a profile by Pillow's plain formula. 16 bits a channel are
    rounded to 8.

    Args:
        path: of the file.
        max_pixels: of the photo, by its header; more is refused before anything is decoded.

    Raises:
        UnreadableImage: not such a file, truncated or broken, or too large; the message is the reason.
    """
    try:
        with warnings.catch_warnings():
            # Pillow's remarks on odd metadata and many pixels; how many are too many is said here.
            warnings.simplefilter("ignore")
            return _read(path, max_pixels)
    except UnreadableImage:
        raise
    except UnidentifiedImageError as error:
        raise UnreadableImage(_unidentified(path)) from error
    except Image.DecompressionBombError as error:
        raise UnreadableImage(f"more than {max_pixels / 1e6:.0f} megapixels") from error
    except MemoryError as error:
        raise UnreadableImage("not enough memory to decode it") from error
    except OSError as error:
        if error.errno is not None:
            raise UnreadableImage(f"cannot be read: {error.strerror}") from error
        raise UnreadableImage(f"cannot be decoded ({error})") from error
    except DAMAGE as error:
        raise UnreadableImage(f"cannot be decoded ({type(error).__name__}: {error})") from error


def _read(path: Path, max_pixels: int) -> Photograph:
    # By handle: Pillow maps files that it opens by name into memory, and turns some such TIFFs wrongly.
    with path.open("rb") as file, Image.open(file, formats=FORMATS) as image:
        if image.width * image.height > max_pixels:
            raise UnreadableImage(
                f"{image.width}×{image.height} is more than {max_pixels / 1e6:.0f} megapixels: make it smaller"
            )
        image.load()
        profile = image.info.get("icc_profile")
        alpha = None
        # Before it is turned, since the two decoders must agree on every pixel.
        deep = whole_depth(path, image)
        if deep is not None:
            plain: Image.Image = deep
        elif image.mode.startswith(("I", "F")):
            plain, alpha = to_8_bits(image)
        else:
            plain = image
        orientation = _orientation(image)
    if orientation is not None:
        plain = plain.transpose(orientation)
        alpha = None if alpha is None else alpha.transpose(orientation)
    return _convert(plain, alpha, profile)


def _orientation(image: Image.Image) -> Image.Transpose | None:
    """How to turn an image upright (EXIF 2.32, tag 0x0112); None for not at all, or where its EXIF is broken."""
    try:
        orientation = image.getexif().get(0x0112)
    except DAMAGE:
        return None
    turns = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_270,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_90,
    }
    return turns.get(orientation) if isinstance(orientation, int) else None


def _convert(image: Image.Image, alpha: Image.Image | None, profile: bytes | None) -> Photograph:
    if alpha is None and image.has_transparency_data:
        image, alpha = _without_alpha(image)
    if image.mode in ("1", "P", "PA", "LA", "La", "RGBA", "RGBa", "RGBX"):
        image = image.convert("L" if image.mode in ("1", "LA", "La") else "RGB")
    opacity = None if alpha is None else np.array(alpha)
    if opacity is not None and opacity.min() == 255:
        opacity = None
    return Photograph(np.array(_to_srgb(image, profile)), opacity)


def _without_alpha(image: Image.Image) -> tuple[Image.Image, Image.Image]:
    """The colours alone, grey ones as grey, so that a grey profile still fits them; and the alpha."""
    if image.mode in ("L", "LA", "La"):
        with_alpha = image.convert("LA")
        return with_alpha.getchannel("L"), with_alpha.getchannel("A")
    with_alpha = image.convert("RGBA")
    return with_alpha.convert("RGB"), with_alpha.getchannel("A")


def _to_srgb(image: Image.Image, profile: bytes | None) -> Image.Image:
    """Convert by the embedded profile; one that is broken, or made for another kind of image, is ignored.

    A grey image may have an RGB profile, which then says how light its greys are.
    """
    if image.mode == "LAB":
        lab, srgb = ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB")
        converted = ImageCms.profileToProfile(image, lab, srgb, outputMode="RGB")
        assert converted is not None
        return converted
    if profile and image.mode in ("RGB", "CMYK", "L"):
        for candidate in (image, image.convert("RGB")) if image.mode == "L" else (image,):
            try:
                source, target = ImageCms.ImageCmsProfile(io.BytesIO(profile)), ImageCms.createProfile("sRGB")
                converted = ImageCms.profileToProfile(candidate, source, target, outputMode="RGB")
            except (ImageCms.PyCMSError, OSError, ValueError):
                continue
            if converted is not None:
                return _neutral(converted) if image.mode == "L" else converted
    return image.convert("RGB")


def _neutral(image: Image.Image) -> Image.Image:
    """A grey that a profile's rounding has tinted by a level → grey again."""
    green = image.getchannel("G")
    return Image.merge("RGB", (green, green, green))


def _unidentified(path: Path) -> str:
    head = b""
    try:
        with path.open("rb") as file:
            head = file.read(16)
    except OSError:
        pass
    if not head:
        return "the file is empty"
    if head[:4] in (b"II*\0", b"MM\0*"):
        return "a TIFF of a kind that cannot be read: save it as 8-bit or 16-bit RGB"
    if path.suffix.lower() in UNREAD_SUFFIXES or head[4:8] == b"ftyp":
        return "of a format that cannot be read: save it as PNG, JPEG or TIFF"
    return f"not a {', '.join(FORMATS[:-1])} or {FORMATS[-1]} image"

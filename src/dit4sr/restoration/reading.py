"""Photographs of any kind → 8-bit sRGB, upright, with their transparency apart."""

from __future__ import annotations

import io
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageCms, ImageOps, UnidentifiedImageError

from dit4sr.data.images import DECODING_ERRORS, MAX_PIXELS, UnreadableImage

SUFFIXES = (".png", ".jpg", ".jpeg", ".jfif", ".webp", ".tif", ".tiff", ".bmp")
FORMATS = ("PNG", "JPEG", "WEBP", "TIFF", "BMP")


@dataclass(frozen=True, eq=False)
class Photograph:
    """A photo as it looks.

    Attributes:
        rgb: uint8 (H, W, 3), sRGB.
        alpha: uint8 (H, W), 255 is opaque; None where all of it is.
    """

    rgb: NDArray[np.uint8] = field(repr=False)
    alpha: NDArray[np.uint8] | None = field(repr=False)


def read_photograph(path: Path, max_pixels: int = MAX_PIXELS) -> Photograph:
    """Read a PNG, JPEG, WebP, TIFF or BMP file; of several frames the first.

    The EXIF orientation is applied; an embedded colour profile is converted to sRGB; grey, palette, CMYK and
    16-bit images become 8-bit RGB.

    Args:
        path: of the file.
        max_pixels: of the photo, by its header; more is refused before anything is decoded.

    Raises:
        UnreadableImage: not such a file, truncated or broken, or too large; the message is the reason.
    """
    try:
        with Image.open(path, formats=FORMATS) as image:
            if image.width * image.height > max_pixels:
                raise UnreadableImage(_too_large(max_pixels))
            image.load()
            upright = ImageOps.exif_transpose(image)
            profile = image.info.get("icc_profile")
            return _convert(upright, profile)
    except UnreadableImage:
        raise
    except UnidentifiedImageError as error:
        raise UnreadableImage("not a PNG, JPEG, WebP, TIFF or BMP image") from error
    except Image.DecompressionBombError as error:
        raise UnreadableImage(_too_large(max_pixels)) from error
    except (*DECODING_ERRORS, MemoryError) as error:
        raise UnreadableImage(f"cannot be decoded ({type(error).__name__}: {error})") from error


def _too_large(max_pixels: int) -> str:
    return f"more than {max_pixels / 1e6:.0f} megapixels"


def _convert(image: Image.Image, profile: bytes | None) -> Photograph:
    if image.mode.startswith(("I", "F")):
        image = _to_8_bits(image)
    alpha = None
    if image.has_transparency_data:
        image = image.convert("RGBA")
        alpha = np.asarray(image.getchannel("A"))
        if alpha.min() == 255:
            alpha = None
        image = image.convert("RGB")
    elif image.mode in ("1", "P", "PA", "LA", "La", "RGBA", "RGBa", "RGBX"):
        image = image.convert("RGB")
    return Photograph(np.array(_to_srgb(image, profile)), alpha)


def _to_8_bits(image: Image.Image) -> Image.Image:
    """16-bit grey (65535 is white) and floating point grey (1 is white) → 8-bit grey.

    Raises:
        UnreadableImage: for values outside that range, whose white is unknown.
    """
    values = np.asarray(image).astype(np.float64)
    white = 1.0 if image.mode.startswith("F") else 65535.0
    if not np.isfinite(values).all() or values.min() < 0 or values.max() > white:
        raise UnreadableImage(f"its values lie outside 0…{white:g}: save it as 8-bit or 16-bit")
    return Image.fromarray(np.rint(values * (255 / white)).astype(np.uint8))


def _to_srgb(image: Image.Image, profile: bytes | None) -> Image.Image:
    """Convert by the embedded profile; one that is broken, or made for another kind of image, is ignored."""
    if profile and image.mode in ("RGB", "CMYK", "L"):
        try:
            source, target = ImageCms.ImageCmsProfile(io.BytesIO(profile)), ImageCms.createProfile("sRGB")
            converted = ImageCms.profileToProfile(image, source, target, outputMode="RGB")
            if converted is not None:
                return converted
        except (ImageCms.PyCMSError, OSError, ValueError):
            pass
    return image.convert("RGB")

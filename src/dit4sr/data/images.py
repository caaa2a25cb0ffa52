"""Image files ↔ uint8 RGB arrays. Only PNG, JPEG and WebP are ever decoded."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from dit4sr.files import write_atomically

Image8 = NDArray[np.uint8]

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")
FORMATS = ("PNG", "JPEG", "WEBP")
MAX_PIXELS = 2**27  # of a photo; more is taken for a decompression bomb

DECODING_ERRORS = (
    OSError,
    SyntaxError,  # Pillow's word for a broken PNG
    ValueError,
    EOFError,
    IndexError,
    KeyError,
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
)
"""What Pillow raises on bytes that are no whole image."""


class UnreadableImage(ValueError):  # noqa: N818
    """Bytes that are not a whole image of a known format; the message is the reason, without a file name."""


def decode_image(data: bytes, max_pixels: int = MAX_PIXELS) -> Image8:
    """Decode PNG, JPEG or WebP bytes.

    Grey, palette, 16-bit and CMYK images are converted, alpha is dropped, and a photo's EXIF orientation is
    applied.

    Returns:
        (H, W, 3) uint8 RGB, contiguous.

    Raises:
        UnreadableImage: another format, truncated or broken bytes, or more than ``max_pixels`` (judged
            by the header, before anything is decoded).
    """
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            if image.width * image.height > max_pixels:
                raise UnreadableImage(f"{image.width}x{image.height} is more than {max_pixels / 1e6:.0f} megapixels")
            upright = ImageOps.exif_transpose(image)
            if upright.mode.startswith("I;16"):
                upright = Image.fromarray((np.asarray(upright) >> 8).astype(np.uint8))
            return np.array(upright.convert("RGB"))
    except UnreadableImage:
        raise
    except UnidentifiedImageError as error:  # its message names a Python object
        raise UnreadableImage("not a readable PNG, JPEG or WebP image (unknown or broken header)") from error
    except DECODING_ERRORS as error:
        raise UnreadableImage(f"not a readable PNG, JPEG or WebP image ({type(error).__name__}: {error})") from error


def read_image(path: str | Path) -> Image8:
    """Read an image file as (H, W, 3) uint8 RGB; raises as `decode_image` does, or OSError."""
    return decode_image(Path(path).read_bytes())


def encode_png(image: Image8) -> bytes:
    """Code (H, W, 3) uint8 RGB as a PNG, without loss."""
    # Level 3 is twice as fast as the default and costs a photo 3 % more bytes.
    done, code = cv2.imencode(".png", cv2.cvtColor(image, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_PNG_COMPRESSION, 3])
    assert done, "OpenCV could not code a PNG"
    return code.tobytes()


EXTENSIONS = {"png": "png", "jpeg": "jpg", "webp": "webp"}
"""Payload → extension of its files."""


def encode_image(image: Image8, payload: str = "png", quality: int = 95) -> bytes:
    """Code (H, W, 3) uint8 RGB as a payload of `EXTENSIONS`.

    ``quality`` is 1 to 100: of JPEG, with full-resolution colour (4:4:4), and of WebP, which is without loss
    at 100. PNG, always without loss, ignores it.
    """
    if payload == "png":
        return encode_png(image)
    options = {
        "jpeg": [cv2.IMWRITE_JPEG_QUALITY, quality]
        + [cv2.IMWRITE_JPEG_SAMPLING_FACTOR, cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444],
        "webp": [cv2.IMWRITE_WEBP_QUALITY, 101 if quality == 100 else quality],  # above 100: OpenCV's "lossless"
    }[payload]
    done, code = cv2.imencode("." + EXTENSIONS[payload], cv2.cvtColor(image, cv2.COLOR_RGB2BGR), options)
    assert done, f"OpenCV could not code a {payload}"
    return code.tobytes()


def write_png(path: str | Path, image: Image8) -> None:
    """Write (H, W, 3) uint8 RGB as a PNG under ``path``, atomically."""
    with write_atomically(path) as temporary:
        temporary.write_bytes(encode_png(image))

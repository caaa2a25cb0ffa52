"""Images of 16 bits a channel, or of floating point, → 8 bits, rounded to nearest."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from dit4sr.data.images import UnreadableImage

TIFF_BITS, TIFF_PHOTOMETRIC, TIFF_PLANES = 258, 262, 284
WHITE_IS_ZERO, SEPARATE = 0, 2


def whole_depth(path: Path, image: Image.Image) -> Image.Image | None:
    """A colour image of 16 bits a channel, rounded to 8; None where it has but 8, or cannot be had so.

    Pillow gives the upper byte of each value. OpenCV gives all 16 bits, but knows less of alpha, orientation and
    layouts; so what it decodes is taken only where its upper bytes are Pillow's pixels exactly.

    Args:
        path: of the file.
        image: as Pillow has loaded it, not yet turned.

    Raises:
        UnreadableImage: for a TIFF whose 16-bit channels lie apart, which neither decoder reads rightly.
    """
    if image.format == "TIFF" and _is_16_bit(path, image) and _tags(image).get(TIFF_PLANES) == SEPARATE:
        raise UnreadableImage("its channels are stored one after the other: save it as interleaved (chunky) TIFF")
    if image.mode not in ("RGB", "RGBA") or image.format not in ("PNG", "TIFF") or not _is_16_bit(path, image):
        return None
    flags = cv2.IMREAD_UNCHANGED if image.mode == "RGBA" else cv2.IMREAD_COLOR | cv2.IMREAD_ANYDEPTH
    before = cv2.utils.logging.getLogLevel()
    cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)
    try:
        data = np.frombuffer(path.read_bytes(), np.uint8)
        values = cv2.imdecode(data, flags | (0 if flags < 0 else cv2.IMREAD_IGNORE_ORIENTATION))
    except cv2.error:
        return None
    finally:
        cv2.utils.logging.setLogLevel(before)
    if values is None or values.dtype != np.uint16 or values.ndim != 3:
        return None
    rgb: NDArray[np.uint16] = values[..., [2, 1, 0, 3][: values.shape[2]]].astype(np.uint16)
    if not np.array_equal(rgb >> 8, np.asarray(image)):
        return None
    rounded = Image.fromarray(_rounded(rgb))
    key = image.info.get("transparency")
    if rounded.mode == "RGB" and isinstance(key, tuple):
        rounded.putalpha(_opaque_but(np.all(rgb == key, axis=-1)))
    return rounded


def to_8_bits(image: Image.Image) -> tuple[Image.Image, Image.Image | None]:
    """16-bit grey (65535 is white) and floating point grey (1 is white) → 8-bit grey, and its alpha if it has one.

    Raises:
        UnreadableImage: for values outside that range, whose white is unknown.
    """
    values = np.asarray(image).astype(np.float64)
    tags = _tags(image)
    bits = tags.get(TIFF_BITS, (16,))[0]
    white = 1.0 if image.mode.startswith("F") else float(2**bits - 1 if 8 < bits < 16 else 65535)
    if not np.isfinite(values).all() or values.min() < 0 or values.max() > white:
        raise UnreadableImage(f"its values lie outside 0…{white:g}: save it as 8-bit or 16-bit")
    key = image.info.get("transparency")
    alpha = _opaque_but(values == key) if isinstance(key, int) else None
    if image.mode.startswith("I;16") and tags.get(TIFF_PHOTOMETRIC) == WHITE_IS_ZERO:
        values = white - values
    return Image.fromarray(np.rint(values * (255 / white)).astype(np.uint8)), alpha


def _is_16_bit(path: Path, image: Image.Image) -> bool:
    if image.format == "TIFF":
        return 16 in tuple(_tags(image).get(TIFF_BITS, ()))
    with path.open("rb") as file:
        head = file.read(25)
    return head[24] == 16  # the bit depth, in the header that every PNG begins with


def _tags(image: Image.Image) -> Mapping[int, Any]:
    return getattr(image, "tag_v2", {})


def _rounded(values: NDArray[np.uint16]) -> NDArray[np.uint8]:
    """65535 → 255: v / 257 to nearest, in integers."""
    return ((values.astype(np.uint32) + 128) // 257).astype(np.uint8)


def _opaque_but(transparent: np.ndarray) -> Image.Image:
    """The alpha of a colour that stands for full transparency."""
    return Image.fromarray(np.where(transparent, 0, 255).astype(np.uint8))

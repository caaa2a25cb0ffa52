"""Results of restore: PNG files that carry the settings they were made with."""

from __future__ import annotations

import io
import json
import os
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image, PngImagePlugin

from dit4sr.files import write_atomically

if TYPE_CHECKING:
    from dit4sr.models.checkpoint import TrainedModel
    from dit4sr.restoration.restorer import Restorer

KEY = "dit4sr"
"""Keyword of the iTXt chunk that holds the settings as JSON."""

SIGNATURE, END = b"\x89PNG\r\n\x1a\n", b"\0\0\0\0IEND\xaeB`\x82"
"""What every whole PNG file begins and ends with."""

PERCEPTUAL = b"\0"
"""The rendering intent of the sRGB chunk."""


def settings_of(restorer: Restorer, trained: TrainedModel, config: Mapping[str, Any]) -> dict[str, Any]:
    """What decides a photo's result, beside the photo and its prompt; it travels in the result's metadata."""
    return {
        "model": trained.config["model"],
        "backbone": trained.config["backbone"]["name"],
        "ckpt": str(trained.path),
        "step": trained.step,
        "injection_scale": getattr(trained.network, "lr_injection_scale", None),
        "sampler": asdict(restorer.sampler),
        "tile": asdict(restorer.tile),
        "acceleration": restorer.acceleration,
        "upscale": config["upscale"],
        "seed": config["seed"],
    }


def write_result(path: Path, pixels: np.ndarray, facts: Mapping[str, Any]) -> None:
    """Write a PNG, tagged as sRGB, upright, atomically.

    Args:
        path: of the file; its folders are made.
        pixels: uint8 (H, W, 3), or (H, W, 4) with alpha.
        facts: the settings it was made with, to travel in the file.

    Raises:
        OSError: it cannot be written; then nothing is left of it.
    """
    metadata = PngImagePlugin.PngInfo()
    metadata.add(b"sRGB", PERCEPTUAL)
    metadata.add_text("Software", KEY)
    text = json.dumps(facts, ensure_ascii=False, default=str)
    metadata.add_itxt(KEY, text.encode("utf-8", "backslashreplace").decode("utf-8"))
    # Into memory first: Pillow reports a full disk without its reason. Level 3 is twice as fast as the default
    # and costs a photo 3 % more bytes.
    encoded = io.BytesIO()
    Image.fromarray(pixels).save(encoded, "PNG", pnginfo=metadata, compress_level=3)
    with write_atomically(path) as temporary:
        temporary.write_bytes(encoded.getbuffer())


def is_whole(path: Path) -> bool:
    """Whether a file is a PNG from its first byte to its last: one that was cut short, or is empty, is not."""
    try:
        with path.open("rb") as file:
            if file.read(len(SIGNATURE)) != SIGNATURE:
                return False
            file.seek(-len(END), io.SEEK_END)
            return file.read() == END
    except OSError:
        return False


def made_with(path: Path) -> dict[str, Any] | None:
    """The settings that a result carries; None where the file is no result of ours."""
    if path.suffix.lower() != ".png":
        return None
    try:
        with Image.open(path, formats=["PNG"]) as image:
            facts = json.loads(image.info[KEY])
    except (OSError, SyntaxError, ValueError, KeyError, TypeError, Image.DecompressionBombError):
        return None
    return facts if isinstance(facts, dict) else None


def differing(facts: Mapping[str, Any], wanted: Mapping[str, Any], prefix: str = "") -> list[str]:
    """The settings of ``wanted`` that a result was made with otherwise, such as ``seed=1``, as they were then.

    Settings that the result does not know are not compared.
    """
    found: list[str] = []
    for name, value in wanted.items():
        if name not in facts:
            continue
        before = facts[name]
        if isinstance(value, Mapping) and isinstance(before, Mapping):
            found += differing(before, value, f"{prefix}{name}.")
        elif name == "ckpt" and os.path.abspath(str(before)) == os.path.abspath(value):
            continue
        elif before != (list(value) if isinstance(value, tuple) else value):  # JSON has no tuples
            found.append(f"{prefix}{name}={before}")
    return found

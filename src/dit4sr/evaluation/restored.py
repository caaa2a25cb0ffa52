"""What an evaluation restores, and under which names it is written and tabled."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, PngImagePlugin

from dit4sr.data.images import Image8
from dit4sr.files import write_atomically


@dataclass(frozen=True)
class Settings:
    """How a benchmark is restored and measured.

    Attributes:
        seeds: each image is restored under every one; the first one's results are the pictures.
        samples: restorations of each image and seed.
        shuffled: whether to restore each image from the next one's LR too.
        batch_size: images of one size restored together.
        write: whether the restored images are written.
    """

    seeds: tuple[int, ...]
    samples: int = 1
    shuffled: bool = False
    batch_size: int = 8
    write: bool = True

    @property
    def units(self) -> int:
        """Restorations of an image under one seed."""
        return self.samples + self.shuffled


def mean_name(method: str, samples: int) -> str:
    """The table's name of the average of that many samples."""
    return f"{method} (mean of {samples})"


def shuffled_name(method: str) -> str:
    """The table's name of the control whose LR images are shuffled."""
    return f"{method} (shuffled LR)"


def restored_file(out: Path, settings: Settings, name: str, seed: int, sample: int = 0) -> Path:
    """Where a sample under a seed is written: restored/, restored_seed<n>/ of further seeds, and
    restored_sample<k>/ or restored_sample<k>_seed<n>/ of further samples."""
    folder = "restored" if sample == 0 else f"restored_sample{sample}"
    folder += "" if seed == settings.seeds[0] else f"_seed{seed}"
    return out / folder / f"{name}.png"


def is_written(out: Path, settings: Settings, name: str, seed: int) -> bool:
    """Whether all that an image has under a seed is there."""
    files = [restored_file(out, settings, name, seed, sample) for sample in range(settings.samples)]
    return all(file.is_file() for file in files)


def mean_file(out: Path, settings: Settings, name: str, seed: int) -> Path:
    """Where the average of the samples under a seed is written."""
    folder = "restored_mean" if seed == settings.seeds[0] else f"restored_mean_seed{seed}"
    return out / folder / f"{name}.png"


def quantise(image: NDArray[np.floating]) -> Image8:
    """[0, 1] → uint8, rounded to nearest and clipped."""
    return np.rint(np.clip(image, 0, 1) * 255).astype(np.uint8)


def write_restored(path: Path, image: Image8, facts: dict[str, Any]) -> None:
    """Write uint8 (H, W, 3) as a PNG with ``facts`` as JSON in its text chunk ``dit4sr``."""
    metadata = PngImagePlugin.PngInfo()
    metadata.add_text("Software", "dit4sr")
    metadata.add_itxt("dit4sr", json.dumps(facts, ensure_ascii=False, default=str))
    with write_atomically(path) as temporary:
        Image.fromarray(image).save(temporary, "PNG", pnginfo=metadata, compress_level=3)

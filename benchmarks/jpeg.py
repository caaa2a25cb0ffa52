"""Hold the batched JPEG codec, and kornia's differentiable one, against libjpeg: ``python benchmarks/jpeg.py --help``.

The same crops at the same qualities go through OpenCV's libjpeg (4:2:0, what the worker engine uses), this project's
batched codec and kornia's. Needs ``pip install kornia`` for its rows.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import cv2
import numpy as np
import torch
from degradation import crops
from numpy.typing import NDArray
from torch import Tensor

from dit4sr.data.degradations.batched_jpeg import CHROMA_TABLE, LUMA_TABLE, jpeg_batch, quantisation_tables
from dit4sr.data.degradations.worker import jpeg_uint8

Levels = NDArray[np.float64]
Codec = Callable[[Tensor, list[int]], Tensor]


def ours(batch: Tensor, qualities: list[int]) -> Tensor:
    """This project's: (B, 3, H, W) in [0, 1], a quality for each image."""
    height, width = (torch.full((len(batch),), side) for side in batch.shape[2:])
    return jpeg_batch(batch, height, width, qualities)


def kornia_as_it_is(batch: Tensor, qualities: list[int]) -> Tensor:
    """kornia's with its own tables and quality scaling, rounded to 8 bits."""
    from kornia.enhance import jpeg_codec_differentiable

    coded = jpeg_codec_differentiable(batch, torch.tensor(qualities, dtype=torch.float32))
    return torch.round(coded.clamp(0, 1) * 255) / 255


def kornia_with_exact_tables(batch: Tensor, qualities: list[int]) -> Tensor:
    """kornia's with libjpeg's integer tables: at quality 50 its own scaling leaves them as they are."""
    from kornia.enhance import jpeg_codec_differentiable

    tables = [quantisation_tables(qualities, base) for base in (LUMA_TABLE, CHROMA_TABLE)]
    coded = jpeg_codec_differentiable(batch, torch.full((len(batch),), 50.0), *tables)
    return torch.round(coded.clamp(0, 1) * 255) / 255


def gradient_energy(image: Levels) -> float:
    """Mean squared forward difference in both directions."""
    return float(np.square(np.diff(image, axis=0)).mean() + np.square(np.diff(image, axis=1)).mean())


def compare(codecs: dict[str, Codec], images: list[NDArray[np.uint8]], qualities: list[int]) -> None:
    """Print how far each codec is from libjpeg at each quality."""
    batch = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).float() / 255
    height, width = images[0].shape[:2]
    print(f"{len(images)} crops of {width}×{height}; loss: squared error to the uncoded image, energy: of gradients")
    print(f"{'quality':>7}  {'codec':<26} {'mean |diff|':>11} {'PSNR':>6} {'loss ×':>7} {'energy ×':>9}")
    for quality in qualities:
        reference = [jpeg_uint8(image, quality).astype(np.float64) for image in images]
        for name, codec in codecs.items():
            coded = codec(batch, [quality] * len(images)).permute(0, 2, 3, 1).numpy().astype(np.float64) * 255
            pairs = list(zip(coded, reference, images, strict=True))
            difference = np.mean([np.abs(c - r).mean() for c, r, _ in pairs])
            psnr = np.mean([10 * np.log10(255**2 / np.square(c - r).mean()) for c, r, _ in pairs])
            loss = np.median([np.square(c - i).mean() / np.square(r - i).mean() for c, r, i in pairs])
            energy = np.median([gradient_energy(c) / gradient_energy(r) for c, r, _ in pairs])
            print(f"{quality:>7}  {name:<26} {difference:>11.3f} {psnr:>6.1f} {loss:>7.3f} {energy:>9.4f}")


def speed(codecs: dict[str, Codec], size: int, batch: int, repeats: int) -> None:
    """Print milliseconds an image on this CPU, turn by turn; a different quality for each image."""
    images = crops(batch, size)
    tensor = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).float() / 255
    qualities = np.random.default_rng(0).integers(30, 96, batch).tolist()
    times: dict[str, list[float]] = {name: [] for name in codecs}
    for _ in range(repeats + 1):
        for name, codec in codecs.items():
            start = time.perf_counter()
            codec(tensor, qualities)
            times[name].append(time.perf_counter() - start)
    line = ", ".join(f"{name} {1000 * float(np.median(t[1:])) / batch:.1f}" for name, t in times.items())
    print(f"ms an image, {batch} of {size}×{size}: {line}")


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=12, help="crops a row (default 12)")
    parser.add_argument("--repeats", type=int, default=5, help="timed calls (default 5)")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    codecs: dict[str, Codec] = {"this project's": ours}
    line = f"1 thread, torch {torch.__version__}, OpenCV {cv2.__version__}"
    try:
        import kornia
    except ImportError:
        print("kornia is not installed: its rows are left out")
    else:
        codecs |= {"kornia's": kornia_as_it_is, "kornia's, libjpeg's tables": kornia_with_exact_tables}
        line += f", kornia {kornia.__version__}"
    print(line)
    with torch.no_grad():
        images = crops(arguments.images, 192)
        compare(codecs, images, [30, 50, 70, 85, 95])
        compare(codecs, [np.ascontiguousarray(image[:61, :90]) for image in images], [30, 60, 95])
        speed(codecs, 128, 16, arguments.repeats)
        speed(codecs, 512, 4, arguments.repeats)


if __name__ == "__main__":
    main()

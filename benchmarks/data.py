"""Time the degradation engines and the wait for data: ``python benchmarks/data.py --help``.

The literal implementation is that of the tests: each stage as its definition says, in plain torch, an image at a
time, with a codec in torch, as training scripts of the field have it.
"""

from __future__ import annotations

import argparse
import csv
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import torch
from skimage import data

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests"))

import literal_degradation as literal  # noqa: E402

from dit4sr.data.degradations import degrade, degrade_batch, draw_parameters, load_preset  # noqa: E402


def crops(n: int, size: int) -> list[np.ndarray]:
    """Crops of photos that ship inside scikit-image, enlarged where they are too small."""
    found = []
    rng = np.random.default_rng(0)
    for i in range(n):
        photo = (data.astronaut(), data.coffee(), data.chelsea())[i % 3]
        factor = max(1.0, size / min(photo.shape[:2]))
        photo = cv2.resize(photo, None, fx=factor, fy=factor, interpolation=cv2.INTER_CUBIC) if factor > 1 else photo
        top, left = (rng.integers(0, side - size + 1) for side in photo.shape[:2])
        found.append(np.ascontiguousarray(photo[top : top + size, left : left + size]))
    return found


def seconds(action: Callable[[], object]) -> tuple[float, float]:
    """Wall-clock and processor seconds of one call."""
    wall, processor = time.perf_counter(), time.process_time()
    action()
    return time.perf_counter() - wall, time.process_time() - processor


def engines_on_one_core(images: list[np.ndarray], name: str, batch: int) -> None:
    """The same images with the same parameters through the literal pipeline and both engines, turn by turn."""
    preset = load_preset(name)
    height, width = images[0].shape[:2]
    tensor = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).float() / 255

    def one(seed: int) -> dict[str, Callable[[], object]]:
        p = draw_parameters(preset, seed, height, width)
        return {
            "literal, torch codec": lambda: literal.apply(images[seed], p, literal.torch_jpeg),
            "literal, Pillow codec": lambda: literal.apply(images[seed], p, literal.real_jpeg),
            "worker engine": lambda: degrade(images[seed], preset, seed),
        }

    for action in one(0).values():  # to warm up
        action()
    times = {label: np.zeros(2) for label in (*one(0), "device engine, on this CPU")}
    for seed in range(len(images)):
        for label, action in one(seed).items():
            times[label] += seconds(action)
    for start in range(0, len(images), batch):
        seeds = list(range(start, min(start + batch, len(images))))
        times["device engine, on this CPU"] += seconds(lambda s=seeds: degrade_batch(tensor[s], preset, s))
    reference = times["literal, torch codec"]
    print(f"{'one core':<28} {'ms/image':>9} {'images/s':>9} {'× literal':>10} {'× by CPU time':>14}")
    for label, (wall, processor) in times.items():
        ratio = f"{reference[0] / wall:>10.1f} {reference[1] / processor:>14.1f}"
        print(f"{label:<28} {1000 * wall / len(images):>9.1f} {len(images) / wall:>9.2f} {ratio}")


def device_engine(images: list[np.ndarray], name: str, batch: int, device: str, repeats: int) -> None:
    """Images a second of the batched engine on a GPU, uint8 batches on the host to LQ on the device."""
    host = torch.from_numpy(np.stack([images[b % len(images)] for b in range(batch)])).permute(0, 3, 1, 2).contiguous()
    host = host.pin_memory()
    times = []
    for i in range(repeats + 2):
        torch.cuda.synchronize()
        start = time.perf_counter()
        degrade_batch(host.to(device, non_blocking=True).float() / 255, name, range(i * batch, (i + 1) * batch))
        torch.cuda.synchronize()
        if i >= 2:
            times.append(time.perf_counter() - start)
    print(
        f"device engine on {torch.cuda.get_device_name()}: "
        f"{batch / float(np.median(times)):.0f} images/s in batches of {batch}"
    )


def data_wait(steps: int) -> None:
    """The share of a nano training's time that is spent waiting for data, from its metrics."""
    with tempfile.TemporaryDirectory() as folder:
        every = max(1, steps // 4)
        settings = [f"trainer.max_steps={steps}", f"trainer.log_every_n_steps={every}", f"out={folder}/run"]
        settings += ["logger.wandb.mode=disabled", "callbacks.validate_every=0", f"paths.data={ROOT / 'data'}"]
        subprocess.run([sys.executable, "-m", "dit4sr", "train", *settings], check=True, cwd=ROOT)
        with open(f"{folder}/run/metrics.csv", newline="") as file:
            shares = [float(row["speed/data_wait"]) for row in csv.DictReader(file) if row.get("speed/data_wait")]
    rows = ", ".join(f"{100 * share:.1f} %" for share in shares)
    print(f"nano training, {steps} steps: share of time spent waiting for data, by {every} steps: {rows}")


def main() -> None:
    """Print the table, and what was asked for besides."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=24, help="images a row (default 24)")
    parser.add_argument("--size", type=int, default=512, help="side of an HR image (default 512)")
    parser.add_argument("--preset", default="dit4sr", help="a name of configs/degradation (default dit4sr)")
    parser.add_argument("--batch", type=int, default=8, help="images of a batch of the device engine (default 8)")
    parser.add_argument("--device", default="cpu", help="cpu, or cuda for the batched engine on a GPU too")
    parser.add_argument("--gpu-batch", type=int, default=64, help="images of a batch on the GPU (default 64)")
    parser.add_argument("--train-steps", type=int, default=0, help="steps of a nano training to watch (default none)")
    arguments = parser.parse_args()

    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    print(
        f"{platform.processor() or platform.machine()}, 1 thread, torch {torch.__version__}, OpenCV {cv2.__version__}; "
        f"degradation {arguments.preset}, {arguments.size} → {arguments.size // 4} px square"
    )
    images = crops(arguments.images, arguments.size)
    engines_on_one_core(images, arguments.preset, arguments.batch)
    if arguments.device.startswith("cuda"):
        device_engine(images, arguments.preset, arguments.gpu_batch, arguments.device, repeats=10)
    if arguments.train_steps:
        data_wait(arguments.train_steps)


if __name__ == "__main__":
    main()

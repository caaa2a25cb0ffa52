"""Time the degradation engines: ``python benchmarks/degradation.py --help``.

The baseline is the literal implementation of the tests: each stage as its definition says, in plain torch, an image at
a time, with a codec in torch, as training scripts of the field have it. The same images with the same parameters go
through it and both engines, turn by turn.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import torch
from measuring import Report, add_arguments, choose_device, paired, summarised, table
from skimage import data

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

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


def engines_on_one_core(report: Report, images: list[np.ndarray], name: str, batch: int) -> None:
    """A round is a batch of images through each of the engines."""
    preset = load_preset(name)
    height, width = images[0].shape[:2]
    tensor = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).float() / 255
    drawn = [draw_parameters(preset, seed, height, width) for seed in range(len(images))]

    def each(one: Callable[[int], object]) -> Callable[[list[int]], object]:
        return lambda seeds: [one(seed) for seed in seeds]

    engines: dict[str, Callable[[list[int]], object]] = {
        "literal, torch codec": each(lambda s: literal.apply(images[s], drawn[s], literal.torch_jpeg)),
        "literal, Pillow codec": each(lambda s: literal.apply(images[s], drawn[s], literal.real_jpeg)),
        "worker engine": each(lambda s: degrade(images[s], preset, s)),
        "device engine, on this CPU": lambda seeds: degrade_batch(tensor[seeds], preset, seeds),
    }
    for engine in engines.values():  # to warm up
        engine([0])
    wall: dict[str, list[float]] = {label: [] for label in engines}
    processor: dict[str, list[float]] = {label: [] for label in engines}
    rounds = [list(range(start, min(start + batch, len(images)))) for start in range(0, len(images), batch)]
    for seeds in rounds:
        for label, engine in engines.items():
            took, worked = seconds(lambda engine=engine, seeds=seeds: engine(seeds))  # type: ignore[misc]
            wall[label].append(took / len(seeds))
            processor[label].append(worked / len(seeds))
    baseline = next(iter(engines))
    by_wall, by_processor = summarised(wall, baseline), summarised(processor, baseline)
    rows = []
    for label, m in by_wall.items():
        ratios = f"{m.ratio:.1f}×", f"{by_processor[label].ratio:.1f}×"
        rows.append([label, f"{1000 * m.seconds:.1f}", f"{1 / m.seconds:.1f}", *ratios])
    head = ["one core", "median ms an image", "images/s", f"speed against {baseline}", "by CPU time"]
    report.say(f"Degradation {name}, {width} → {width // 4} px square, {len(images)} images, batches of {batch}:\n")
    report.say(table(rows, head) + "\n")


def device_engine(report: Report, images: list[np.ndarray], name: str, batches: list[int], rounds: int) -> None:
    """The batched engine on a GPU, from uint8 batches on the host to LQ on the device; against a core of this CPU."""
    preset, device = load_preset(name), report.device
    host = torch.from_numpy(np.stack([images[b % len(images)] for b in range(max(batches))]))
    host = host.permute(0, 3, 1, 2).contiguous().pin_memory()

    def on_device(batch: int) -> object:
        patches = host[:batch].to(device, non_blocking=True).float() / 255
        return degrade_batch(patches, preset, range(batch))

    def worker() -> object:
        return [degrade(images[i % len(images)], preset, i) for i in range(4)]

    actions: dict[str, Callable[[], object]] = {"worker engine, one core": worker}
    actions |= {f"batches of {batch}": lambda batch=batch: on_device(batch) for batch in batches}
    measured = paired(actions, rounds=rounds, device=device)
    sizes = dict(zip(actions, [4, *batches], strict=True))
    first = next(iter(measured.values())).seconds / 4
    rows = []
    for label, m in measured.items():
        an_image = m.seconds / sizes[label]
        rows.append([label, f"{1000 * m.seconds:.1f}", f"{1 / an_image:.0f}", f"{first / an_image:.0f}×"])
    report.say("The batched engine on the device:\n")
    report.say(table(rows, ["engine", "median ms a batch", "images/s", "speed against one core"]))


def main() -> None:
    """Print the tables, and write them where asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=24, help="images a row (default 24)")
    parser.add_argument("--size", type=int, default=512, help="side of an HR image (default 512)")
    parser.add_argument("--preset", default="dit4sr", help="a name of configs/degradation (default dit4sr)")
    parser.add_argument("--batch", type=int, default=4, help="images of a round on the CPU (default 4)")
    parser.add_argument("--gpu-batch", type=int, nargs="+", default=[8, 64], help="images of a batch there (8 64)")
    add_arguments(parser)
    arguments = parser.parse_args()
    choose_device(parser, arguments.device)

    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    report = Report("degradation", arguments.device, arguments.note)
    images = crops(arguments.images, arguments.size)
    if arguments.device.startswith("cuda"):
        device_engine(report, images, arguments.preset, arguments.gpu_batch, arguments.rounds)
    else:
        engines_on_one_core(report, images, arguments.preset, arguments.batch)
    report.write(arguments.out)


if __name__ == "__main__":
    main()

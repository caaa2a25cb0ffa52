"""Time the reading of shards and the making of batches: ``python benchmarks/loading.py --help``.

Shards of photos that ship inside scikit-image are written to a temporary folder. Rows: what a core does with one sample
(reading, decoding, degrading), and batches a second by the number of workers, while the main process waits for them and
does nothing else. ``--train-steps`` also trains the nano model and reads the share of waiting from its metrics.
"""

from __future__ import annotations

import argparse
import csv
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import torch
from degradation import crops
from measuring import Report, add_arguments, comparison, paired, summarised, table
from omegaconf import OmegaConf

from dit4sr.config import config_dir
from dit4sr.data.datamodule import SRDataModule
from dit4sr.data.degradations import degrade, load_preset
from dit4sr.data.images import decode_image
from dit4sr.data.shard_index import index_shard
from dit4sr.data.shards import ShardSample, find_shards, write_manifest, write_shards

ROOT = Path(__file__).resolve().parents[1]


def shards_of_photos(folder: Path, side: int, samples: int = 64, per_shard: int = 8) -> Path:
    """Shards of square photos as PNG."""
    photos = crops(min(samples, 12), side)
    made = (ShardSample(f"{n:06d}", photos[n % len(photos)], "a photo", {}) for n in range(samples))
    write_manifest(folder, write_shards(folder, made, per_shard), {})
    return folder


def data_module(folder: Path, *, crop: int, batch: int, workers: int, engine: str = "worker") -> SRDataModule:
    """The published recipe's data on these shards."""
    config: Any = OmegaConf.load(config_dir() / "data" / "shards.yaml")
    changes = {"shards": str(folder), "batch_size": batch, "workers": workers, "engine": engine, "prompt_drop": 0.2}
    config = OmegaConf.merge(config, changes, {"shuffle_buffer": 8, "cache": str(folder)})
    plain: Any = OmegaConf.to_container(config, resolve=False)
    preset = load_preset("dit4sr")
    return SRDataModule(plain, preset, seed=0, crop=crop, paths={"data": str(folder)}, rank=0, world_size=1)


def parts_of_a_sample(report: Report, folder: Path, crop: int, rounds: int) -> None:
    """What one core does with a sample."""
    shard = find_shards(folder)[0]
    sample = index_shard(shard)[0]
    assert sample.image is not None
    start, size, preset = sample.image.offset, sample.image.size, load_preset("dit4sr")

    def read() -> bytes:
        with shard.open("rb") as file:
            file.seek(start)
            return file.read(size)

    payload = read()
    image = decode_image(payload)
    patch = image[:crop, :crop]
    numbers = iter(range(10**6))
    measured = paired(
        {
            "degrading it": lambda: degrade(patch, preset, next(numbers)),
            "reading its bytes": read,
            "decoding it": lambda: decode_image(payload),
        },
        rounds=4 * rounds,
    )
    report.say(f"One sample on one core, a photo of {image.shape[1]}×{image.shape[0]}, crop {crop}:\n")
    report.say(comparison(measured, what="part") + "\n")


def batches_by_workers(report: Report, folder: Path, crop: int, batch: int, workers: list[int], rounds: int) -> None:
    """Samples a second of batches that nobody computes with; each number of workers in turn."""
    loaders: dict[int, Iterator[Any]] = {}
    for number in workers:
        loaders[number] = iter(data_module(folder, crop=crop, batch=batch, workers=number).train_dataloader())
    ahead, per_turn = 5, 6  # workers fill their queues of four batches between turns: these are taken first
    values: dict[str, list[float]] = {str(number): [] for number in workers}
    for turn in range(rounds + 1):
        for number, loader in loaders.items():
            for _ in range(ahead):
                next(loader)
            began = time.perf_counter()
            for _ in range(per_turn):
                next(loader)
            if turn:
                values[str(number)].append((time.perf_counter() - began) / per_turn)
    measured = summarised(values, str(workers[0]))
    rows = [
        [label, f"{1000 * m.seconds:.1f}", f"{batch / m.seconds:.1f}", f"{m.ratio:.2f}×"]
        for label, m in measured.items()
    ]
    report.say(f"Batches of {batch} crops of {crop} px, degraded, as fast as they come:\n")
    report.say(table(rows, ["workers", "median ms a batch", "samples/s", f"speed against {workers[0]}"]))


def data_wait(report: Report, steps: int) -> None:
    """The share of a nano training's time that is spent waiting for data, from its metrics."""
    with tempfile.TemporaryDirectory() as folder:
        every = max(1, steps // 4)
        settings = [f"trainer.max_steps={steps}", f"trainer.log_every_n_steps={every}", f"out={folder}/run"]
        settings += ["logger.wandb.mode=disabled", "callbacks.validate_every=0", f"paths.data={ROOT / 'data'}"]
        settings += [f"trainer.accelerator={'gpu' if report.device.startswith('cuda') else 'cpu'}"]
        subprocess.run([sys.executable, "-m", "dit4sr", "train", *settings], check=True, cwd=ROOT)
        with open(f"{folder}/run/metrics.csv", newline="") as file:
            shares = [float(row["speed/data_wait"]) for row in csv.DictReader(file) if row.get("speed/data_wait")]
    rows = ", ".join(f"{100 * share:.1f} %" for share in shares)
    report.say(f"\nnano training, {steps} steps: share of time spent waiting for data, by {every} steps: {rows}")


def main() -> None:
    """Print the tables, and write them where asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--side", type=int, default=640, help="pixels of a photo's side (default 640)")
    parser.add_argument("--crop", type=int, default=512, help="of a training crop (default 512)")
    parser.add_argument("--batch", type=int, default=8, help="crops of a batch (default 8)")
    parser.add_argument("--workers", type=int, nargs="+", default=[0, 1, 2], help="numbers of workers (default 0 1 2)")
    parser.add_argument("--train-steps", type=int, default=0, help="steps of a nano training to watch (default none)")
    add_arguments(parser, rounds=4)
    arguments = parser.parse_args()

    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    report = Report("loading", arguments.device, arguments.note)
    with tempfile.TemporaryDirectory() as folder:
        shards = shards_of_photos(Path(folder), arguments.side)
        parts_of_a_sample(report, shards, arguments.crop, arguments.rounds)
        batches_by_workers(report, shards, arguments.crop, arguments.batch, arguments.workers, arguments.rounds)
    if arguments.train_steps:
        data_wait(report, arguments.train_steps)
    report.write(arguments.out)


if __name__ == "__main__":
    main()

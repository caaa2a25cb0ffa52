"""``make demo``: shards, training and evaluation on the embedded default, by the verbs themselves."""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from pathlib import Path

SAMPLES = 8


def main() -> int:
    """Run the demo; returns the exit status of the first verb that fails, else 0."""
    parser = argparse.ArgumentParser(prog="python -m dit4sr.studies.demo", description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("outputs/demo"), help="folder of everything it writes")
    parser.add_argument("overrides", nargs="*", help="further settings for train.py, such as trainer.max_steps=100")
    parser.add_argument("--quick", action="store_true", help="two steps of everything, to see that it works")
    arguments = parser.parse_args()
    out: Path = arguments.out
    began = time.monotonic()
    samples = 2 if arguments.quick else SAMPLES
    training = (
        ["trainer.max_steps=2", "callbacks=none", *arguments.overrides] if arguments.quick else arguments.overrides
    )
    sampling = ["sampler.steps=2", "sampler.guidance=1", "sampler.tile_batch=256"] if arguments.quick else []
    stages = (
        ("shards from the photographs inside scikit-image and scikit-learn", ["prepare"]),
        ("training a nano DiT4SR from scratch", ["train", f"out={out}/train", "trainer.devices=1", *training]),
        (
            "restoring held-out photos that no training step has seen",
            [
                "evaluate",
                "benchmark=demo",
                f"ckpt={out}/train/checkpoints/last.ckpt",
                f"out={out}/evaluation",
                f"samples={samples}",
                "shuffled=true",
                *sampling,
            ],
        ),
    )
    for number, (title, (verb, *overrides)) in enumerate(stages, 1):
        print(f"\n[{number}/{len(stages)}] {title}\n$ python {' '.join([f'{verb}.py', *overrides])}", flush=True)
        stage_began = time.monotonic()
        status = subprocess.run([sys.executable, "-m", "dit4sr", verb, *overrides], check=False).returncode
        if status:
            print(f"the demo stopped at {verb}.py, exit status {status}", file=sys.stderr)
            return status
        print(f"({time.monotonic() - stage_began:.0f} s)", flush=True)
    print(closing_words(out, samples, time.monotonic() - began))
    return 0


def closing_words(out: Path, samples: int, seconds: float) -> str:
    """How to read the table, where the picture is, and what to try next."""
    return f"""
Done in {seconds / 60:.1f} minutes. How to read the table:
  bicubic              the input, upsampled: smooth, so PSNR flatters it; its gradient energy shows the blur
  dit4sr               one sample from the posterior: sharper, and a sample always costs PSNR
  dit4sr (mean of {samples})   the average of samples approaches the posterior's mean: the fidelity it has learned
  dit4sr (shuffled LR) the same network given another photo's LR: what it loses is what it took from the LR
The picture: {out}/evaluation/comparison.png

What to try next:
  python restore.py input=<a photo or a folder> output=restored ckpt={out}/train/checkpoints/last.ckpt
  python train.py model=variant_b            an ablation variant; make ablations trains all six models
  python train.py trainer.max_steps=20000    the same model for longer
  python prepare.py source=<your photos>     then: python train.py data=shards data.shards=<the folder it names>"""


if __name__ == "__main__":
    sys.exit(main())

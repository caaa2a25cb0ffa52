"""The verb ``restore``: photos in, restored photos out."""

from __future__ import annotations

import json
import sys
from collections.abc import Collection
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig, OmegaConf

from dit4sr.errors import UserError

if TYPE_CHECKING:
    from dit4sr.restoration.finding import Job
    from dit4sr.restoration.restorer import Restorer

LEAST_SIDE = 16
"""Pixels of a photo's shorter side."""


@dataclass(frozen=True)
class Failed:
    """A photo that could not be restored, and why."""

    name: str
    reason: str


def run(config: DictConfig, explicit: Collection[str] = ()) -> int:
    """Restore a photo, a folder of photos or a glob to <output>/<relative folder>/<stem>.png.

    Args:
        config: configs/restore.yaml, composed.
        explicit: names of the settings that the command line set.

    Returns:
        0 when done, 1 when photos could not be restored (they are listed).

    Raises:
        UserError: for a config or an input that the user can mend; then nothing is written.
    """
    plain: dict[str, Any] = OmegaConf.to_container(config, resolve=True)  # type: ignore[assignment]
    if plain["input"] is None:
        raise UserError("say what to restore: input=<photo, folder or glob> output=<folder>")
    if plain["upscale"] < 1:
        raise UserError(f"upscale={plain['upscale']}: the factor is at least 1")
    output = Path(plain["output"]).expanduser()
    if output.exists() and not output.is_dir():
        raise UserError(f"output={output} is a file: give a folder")

    from dit4sr.restoration.finding import find_jobs

    jobs = find_jobs(str(plain["input"]), output, recursive=plain["recursive"])
    todo = [job for job in jobs if plain["overwrite"] or not job.result.exists()]
    failed: list[Failed] = []
    if todo:
        from dit4sr.restoration.loading import load_restorer

        restorer, trained = load_restorer(plain, explicit)
        settings = {
            "model": trained.config["model"],
            "backbone": trained.config["backbone"]["name"],
            "ckpt": str(trained.path),
            "step": trained.step,
            "sampler": asdict(restorer.sampler),
            "tile": asdict(restorer.tile),
            "upscale": plain["upscale"],
            "seed": plain["seed"],
        }
        failed = restore_all(todo, restorer, plain, settings)
    report(jobs, todo, failed, output)
    return 1 if failed else 0


def restore_all(jobs: list[Job], restorer: Restorer, config: dict[str, Any], settings: dict[str, Any]) -> list[Failed]:
    """Restore photo after photo; those that cannot be are returned."""
    import torch
    from tqdm import tqdm

    from dit4sr.data.images import UnreadableImage

    failed = []
    interval = 0.2 if sys.stderr.isatty() else 10
    for job in tqdm(jobs, "restoring", unit="photo", mininterval=interval):
        try:
            restore_one(job, restorer, config, settings)
        except UnreadableImage as error:
            failed.append(Failed(job.name, str(error)))
        except torch.OutOfMemoryError:
            torch.cuda.empty_cache()
            failed.append(Failed(job.name, "not enough GPU memory: lower sampler.tile_batch or use device=cpu"))
    return failed


def restore_one(job: Job, restorer: Restorer, config: dict[str, Any], settings: dict[str, Any]) -> None:
    """Restore one photo and write it, with ``settings`` in its text metadata.

    Its noise follows from the seed and its relative path alone. Transparency is kept: enlarged bicubically.

    Raises:
        UnreadableImage: it cannot be read, or a side is shorter than :data:`LEAST_SIDE`.
    """
    import numpy as np
    from PIL import Image, PngImagePlugin

    from dit4sr.data.images import UnreadableImage
    from dit4sr.files import write_atomically
    from dit4sr.restoration.noise import noise_seed
    from dit4sr.restoration.reading import read_photograph

    photograph = read_photograph(job.photo)
    height, width = photograph.rgb.shape[:2]
    if min(height, width) < LEAST_SIDE:
        raise UnreadableImage(f"{width}×{height} is too small: both sides need {LEAST_SIDE} pixels or more")
    prompt = prompt_of(job, config["prompt"]["fixed"])
    seed = noise_seed(config["seed"], job.name)
    restored = restorer.restore(photograph.rgb, prompt, seed=seed, upscale=config["upscale"])
    if photograph.alpha is not None:
        size = (restored.shape[1], restored.shape[0])
        alpha = Image.fromarray(photograph.alpha).resize(size, Image.Resampling.BICUBIC)
        restored = np.dstack([restored, np.asarray(alpha)])
    metadata = PngImagePlugin.PngInfo()
    metadata.add_text("Software", "dit4sr")
    facts = {**settings, "photo": job.name, "prompt": prompt}
    metadata.add_itxt("dit4sr", json.dumps(facts, ensure_ascii=False))
    with write_atomically(job.result) as temporary:
        Image.fromarray(restored).save(temporary, "PNG", pnginfo=metadata)


def prompt_of(job: Job, fixed: str | None) -> str:
    """The fixed prompt, or the photo's caption: the text of <stem>.txt beside it, "" where there is none."""
    if fixed is not None:
        return fixed
    path = job.caption_file
    return path.read_text(encoding="utf-8", errors="replace").strip() if path.is_file() else ""


def report(jobs: list[Job], todo: list[Job], failed: list[Failed], output: Path) -> None:
    """Say in a few lines what became of the photos."""
    done, skipped = len(todo) - len(failed), len(jobs) - len(todo)
    parts = [f"{done} of {len(jobs)} photos restored into {output}"]
    if skipped:
        parts.append(f"{skipped} skipped: there already (overwrite=true does them again)")
    if failed:
        parts.append(f"{len(failed)} failed:")
    print("; ".join(parts))
    for failure in failed:
        print(f"  {failure.name}: {failure.reason}")

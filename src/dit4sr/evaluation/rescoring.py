"""``metrics_only=true``: measuring the restored images of an earlier evaluation, without restoring again."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from dit4sr.data.images import read_image
from dit4sr.errors import UserError
from dit4sr.evaluation.benchmarks import Benchmark
from dit4sr.evaluation.methods import ImageFloat, Task, restored_folder
from dit4sr.evaluation.restored import Settings, restored_file
from dit4sr.restoration.noise import noise_seed


@dataclass(frozen=True)
class Restored:
    """The images that an earlier evaluation restored, by image and the seed of the noise they were made from."""

    name: str
    files: Mapping[tuple[str, int], Path]
    settings: dict[str, Any]
    samples: bool = False
    reads_lq: bool = False

    def restore(self, tasks: Sequence[Task]) -> list[ImageFloat]:
        import numpy as np

        images = (read_image(self.files[task.image.name, task.seed]) for task in tasks)
        return [np.divide(image, 255, dtype=np.float32) for image in images]


def restored_method(
    out: Path, config: dict[str, Any], benchmark: Benchmark, settings: Settings
) -> tuple[Settings, Restored]:
    """The method whose images lie in ``out``, under the name and with the settings that its summary states.

    Returns:
        How they are measured, which is without writing them, and the method.

    Raises:
        UserError: see :func:`dit4sr.evaluation.methods.restored_folder`.
    """
    try:
        method = json.loads((out / "summary.json").read_text(encoding="utf-8"))["method"]
        name = str(method.pop("name"))
    except (OSError, ValueError, KeyError, AttributeError, TypeError):
        method = {}
        name = config["model"]["name"] if config["method"]["name"] == "checkpoint" else config["method"]["name"]
    settings = replace(settings, samples=_samples_there(out, settings), shuffled=False, write=False)
    files: dict[tuple[str, int], Path] = {}
    folders: list[str] = []
    for seed in settings.seeds:
        for sample in range(settings.samples):
            folder = restored_file(out, settings, "", seed, sample).parent
            if not folder.is_dir():
                raise UserError(f"metrics_only=true: {folder} is missing: evaluate again without it")
            made = restored_folder(folder, name, benchmark).files
            files |= {(i.name, noise_seed(seed, i.name, sample)): made[i.name] for i in benchmark.images}
            folders.append(str(folder))
    return settings, Restored(name, files, {**method, "images": folders})


def _samples_there(out: Path, settings: Settings) -> int:
    """The samples whose images were kept; evaluations of old kept the first one alone."""
    folders = [restored_file(out, settings, "", settings.seeds[0], sample).parent for sample in range(settings.samples)]
    return settings.samples if all(folder.is_dir() for folder in folders) else 1

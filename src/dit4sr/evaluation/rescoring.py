"""``metrics_only=true``: measuring the restored images of an earlier evaluation, without restoring again."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

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


def earlier_config(config: dict[str, Any], explicit: Collection[str]) -> dict[str, Any]:
    """The config with the benchmark, seeds and samples of the evaluation in ``out``; the benchmark may be another.

    Raises:
        UserError: where ``out`` is not given or holds no restored images, or these have other seeds or samples than
            the command line says.
    """
    out = Path(config["out"])
    if "out" not in explicit or not (out / "restored").is_dir():
        raise UserError(
            f"metrics_only=true measures the images in {out / 'restored'}, and there are none: give out=<folder of an "
            "evaluation>; for a folder of images use method=folder method.path=<folder>"
        )
    try:
        saved: Any = OmegaConf.to_container(OmegaConf.load(out / "config.yaml"), resolve=True)
    except (OSError, OmegaConfBaseException, ValueError):
        saved = {}
    given = {name.split(".")[0] for name in explicit}
    for part in ("seeds", "samples"):
        if part in saved and part in given | ({"seeds"} if "seed" in given else set()) and config[part] != saved[part]:
            raise UserError(
                f"metrics_only=true: the images in {out} were restored with {part}={saved[part]}: leave "
                f"{'seed and seeds' if part == 'seeds' else part} out"
            )
    for part in ("benchmark", "seed", "seeds", "samples", "method", "model"):
        if part in saved and (part not in given or part in ("seed", "seeds", "samples")):
            config[part] = saved[part]
    config["shuffled"] = False
    return config


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

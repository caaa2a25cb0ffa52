"""``metrics_only=true``: measuring the restored images of an earlier evaluation, without restoring again."""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from dit4sr.data.images import read_image
from dit4sr.errors import UserError
from dit4sr.evaluation.benchmarks import Benchmark
from dit4sr.evaluation.measuring import Settings, restored_file
from dit4sr.evaluation.methods import ImageFloat, Task, restored_folder


@dataclass(frozen=True)
class Restored:
    """The images that an earlier evaluation restored, under their first seed."""

    name: str
    folder: Path
    settings: dict[str, Any]
    samples: bool = False
    reads_lq: bool = False

    def restore(self, tasks: Sequence[Task]) -> list[ImageFloat]:
        import numpy as np

        images = (read_image(self.folder / f"{task.image.name}.png") for task in tasks)
        return [np.divide(image, 255, dtype=np.float32) for image in images]


def earlier_config(config: dict[str, Any], explicit: Collection[str]) -> dict[str, Any]:
    """The config with the benchmark and the seeds of the evaluation in ``out``, unless the command line says them.

    Raises:
        UserError: where ``out`` is not given or holds no restored images.
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
    for part in ("benchmark", "seed", "seeds", "method", "model"):
        if part not in given and part in saved:
            config[part] = saved[part]
    config["samples"], config["shuffled"] = 1, False
    return config


def restored_method(out: Path, config: dict[str, Any], benchmark: Benchmark, settings: Settings) -> Restored:
    """The method whose images lie in ``out``, under the name and with the settings that its summary states.

    Raises:
        UserError: see :func:`dit4sr.evaluation.methods.restored_folder`.
    """
    folder = restored_file(out, settings, "", settings.seeds[0]).parent
    try:
        method = json.loads((out / "summary.json").read_text(encoding="utf-8"))["method"]
        name = str(method.pop("name"))
    except (OSError, ValueError, KeyError, AttributeError, TypeError):
        method = {}
        name = config["model"]["name"] if config["method"]["name"] == "checkpoint" else config["method"]["name"]
    restored_folder(folder, name, benchmark)
    return Restored(name, folder, {**method, "images": str(folder)})


def first_seed(settings: Settings) -> Settings:
    """The settings for images that are made already."""
    return replace(settings, seeds=settings.seeds[:1], samples=1, shuffled=False, write=False)

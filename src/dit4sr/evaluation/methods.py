"""What is measured: a network of ours or of others, bicubic upsampling, or images that a method restored."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from dit4sr.data.images import Image8, UnreadableImage, read_image
from dit4sr.errors import UserError
from dit4sr.evaluation.benchmarks import Benchmark, BenchmarkImage
from dit4sr.evaluation.checks import refuse_name
from dit4sr.evaluation.image_folders import image_size, match_names
from dit4sr.images import from_hwc, upsample_bicubic

ImageFloat = NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class Task:
    """One image to restore once.

    Attributes:
        image: of the benchmark; gives the target size and the prompt.
        lq: uint8 (h, w, 3); not always the image's own.
        seed: of the noise.
    """

    image: BenchmarkImage
    lq: Image8
    seed: int


class Method(Protocol):
    """A way to restore a benchmark's images."""

    @property
    def name(self) -> str:
        """In tables and files."""
        ...

    @property
    def samples(self) -> bool:
        """Whether the result depends on the noise."""
        ...

    @property
    def reads_lq(self) -> bool:
        """Whether the result is computed from ``Task.lq``."""
        ...

    @property
    def settings(self) -> dict[str, Any]:
        """What the summary states about it."""
        ...

    def restore(self, tasks: Sequence[Task]) -> list[ImageFloat]:
        """Restore tasks whose LQ images have one size: float32 (H, W, 3) in [0, 1], unrounded.

        Raises:
            UnreadableImage: where a task's result is a file that cannot be read.
        """
        ...


@dataclass(frozen=True)
class Bicubic:
    """Bicubic upsampling, as the LR stream sees it."""

    name: str = "bicubic"
    samples: bool = False
    reads_lq: bool = True
    settings: dict[str, Any] = field(default_factory=dict)

    def restore(self, tasks: Sequence[Task]) -> list[ImageFloat]:
        return [upsample_bicubic(from_hwc(task.lq), *task.image.target)[0].permute(1, 2, 0).numpy() for task in tasks]


@dataclass(frozen=True)
class Folder:
    """Images in a folder, by the benchmark's names; somebody else's method made them."""

    name: str
    files: Mapping[str, Path]
    settings: dict[str, Any]
    samples: bool = False
    reads_lq: bool = False

    def restore(self, tasks: Sequence[Task]) -> list[ImageFloat]:
        images = (read_image(self.files[task.image.name]) for task in tasks)
        return [np.divide(image, 255, dtype=np.float32) for image in images]


@dataclass(frozen=True)
class Checkpoint:
    """A network of ours."""

    name: str
    restorer: Any
    upscale: float
    settings: dict[str, Any]
    samples: bool = True
    reads_lq: bool = True

    def restore(self, tasks: Sequence[Task]) -> list[ImageFloat]:
        return self.restorer.restore_batch(
            [task.lq for task in tasks],
            [task.image.prompt for task in tasks],
            [task.seed for task in tasks],
            self.upscale,
            as_float=True,
        )


def build_method(config: dict[str, Any], benchmark: Benchmark, explicit: Collection[str]) -> Method:
    """The method that configs/evaluate.yaml asks for.

    Its settings are those that :func:`dit4sr.evaluation.checks.check_method` has let pass. With a checkpoint, the parts
    ``model``, ``backbone`` and ``sampler`` of ``config`` become those used.

    Raises:
        UserError: no checkpoint or one of another model, or images that a folder misses.
    """
    name = config["method"]["name"]
    method: Method
    if name == "bicubic":
        return Bicubic()
    if name == "folder":
        method = _folder(config["method"], benchmark)
    elif name == "checkpoint":
        method = _checkpoint(config, benchmark, explicit)
    else:
        from dit4sr.evaluation.foreign import load_foreign

        method = load_foreign(config["method"], benchmark, config["device"])
    refuse_name(method.name)
    return method


def _folder(config: Mapping[str, Any], benchmark: Benchmark) -> Folder:
    folder = Path(config["path"]).expanduser()
    return restored_folder(folder, config["label"] or folder.resolve().name, benchmark)


def restored_folder(folder: Path, name: str, benchmark: Benchmark) -> Folder:
    """A folder of restored images, each found by its name, checked to be this benchmark's.

    Names are matched by :func:`dit4sr.evaluation.image_folders.match_names`; a change of name is in the settings.

    Raises:
        UserError: images are missing, have other sizes, or show other things than the LR images of their names.
    """
    files, change = match_names(folder, [image.name for image in benchmark.images], benchmark.name)
    images = benchmark.images
    for image in images:
        _check_size(files[image.name], image)
    if benchmark.checked:
        from dit4sr.evaluation.pairing import mispaired

        sizes = [image.size for image in images]
        names = [image.name for image in images]
        if wrong := mispaired(names, [i.lq for i in images], [files[n] for n in names], sizes):
            more = f" and {len(wrong) - 5} more" if len(wrong) > 5 else ""
            raise UserError(
                f"{folder}: {len(wrong)} images show something else than the LR images of their names: "
                f"{', '.join(wrong[:5])}{more}; name them rightly, or pass benchmark.allow_incomplete=true"
            )
    return Folder(name, files, {"path": str(folder), **({"names": change} if change else {})})


def _check_size(path: Path, image: BenchmarkImage) -> None:
    try:
        height, width = image_size(path)
    except UnreadableImage:  # it is skipped and reported when its turn comes
        return
    if (height, width) != image.target:
        raise UserError(
            f"{path} has {width}×{height} pixels, but {image.name} is restored to "
            f"{image.target[1]}×{image.target[0]}: give results of the benchmark's size"
        )


def _checkpoint(config: dict[str, Any], benchmark: Benchmark, explicit: Collection[str]) -> Checkpoint:
    from dit4sr.restoration.loading import load_restorer

    restorer, trained = load_restorer(config, explicit, [image.prompt for image in benchmark.images])
    config["ckpt"] = str(trained.path)
    config["model"] = trained.config["model"]
    config["backbone"] = {**trained.config["backbone"], "tile": asdict(restorer.tile)}
    config["sampler"] = asdict(restorer.sampler)
    settings = {
        "model": config["model"],
        "backbone": config["backbone"]["name"],
        "ckpt": config["ckpt"],
        "step": trained.step,
        "trained_on_degradation": trained.config.get("degradation", {}).get("name"),
        "training_seed": trained.config.get("seed"),
        "sampler": config["sampler"],
        "tile": config["backbone"]["tile"],
        "acceleration": restorer.acceleration,
        "device": str(restorer.device),
        **{key: trained.config[key] for key in ("injection_scale",) if key in trained.config},
    }
    return Checkpoint(config["model"]["name"], restorer, benchmark.upscale, settings)

"""What studies with checkpoints share: the benchmark's images with their prompts, and restorers of two runs."""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING, Any

from dit4sr.errors import UserError

if TYPE_CHECKING:
    from dit4sr.evaluation.benchmarks import Benchmark, BenchmarkImage
    from dit4sr.models.checkpoint import TrainedModel
    from dit4sr.restoration.restorer import Restorer


def benchmark_of(config: dict[str, Any], explicit: Collection[str], *, caption: bool = True) -> Benchmark:
    """The benchmark that configs/evaluate.yaml asks for, with the prompts that it asks for.

    Args:
        config: composed, as plain values.
        explicit: names of the settings that the command line sets.
        caption: whether a captioner may be asked; else the benchmark's own prompts are kept.

    Raises:
        UserError: as ``evaluate.py`` would.
    """
    from dit4sr.evaluation.prompting import with_captions
    from dit4sr.evaluation.run import find_benchmark
    from dit4sr.prompts.captions import build_captions

    if not caption:
        return find_benchmark(config, explicit)
    captions = build_captions(config)
    return with_captions(find_benchmark(config, explicit, captions.fixed), captions)


def chosen_images(benchmark: Benchmark, names: Collection[str], count: int) -> list[BenchmarkImage]:
    """The images of those names, or ``count`` spread evenly over the benchmark.

    Raises:
        UserError: for a name that the benchmark lacks, or no image.
    """
    images = list(benchmark.images)
    if names:
        known = {image.name: image for image in images}
        if missing := [name for name in names if name not in known]:
            raise UserError(
                f"images: benchmark {benchmark.name} has no {', '.join(missing)}; "
                f"it has {', '.join(list(known)[:8])}{' …' if len(known) > 8 else ''}"
            )
        return [known[name] for name in names]
    if count < 1:
        raise UserError(f"count={count}: give 1 or more")
    count = min(count, len(images))
    return [images[i * len(images) // count] for i in range(count)]


def restorer_for(
    config: dict[str, Any], explicit: Collection[str], *, ckpt: str | None, model: str, setting: str = "ckpt"
) -> tuple[Restorer, TrainedModel]:
    """A restorer with a checkpoint, or with the newest one of a model.

    Args:
        config: configs/evaluate.yaml, composed.
        explicit: names of the settings that the command line sets.
        ckpt: a checkpoint's file or its run's folder; None for the newest of ``model``.
        model: name of configs/model.
        setting: the study's name for ``ckpt``, which messages speak of.

    Raises:
        UserError: there is none, or it cannot be used; see :func:`dit4sr.restoration.loading.load_restorer`.
    """
    from dit4sr.restoration.loading import load_restorer

    if any(name.split(".")[0] == "acceleration" for name in explicit):
        raise UserError("acceleration: this study looks inside the network as it was trained: leave the setting out")
    asked = {**config, "acceleration": None, "ckpt": ckpt, "model": {**config["model"], "name": model}}
    if ckpt is not None or model != config["model"]["name"]:
        asked |= {"weights": None, "weights_preset": None}
    if model != config["model"]["name"]:
        explicit = {name for name in explicit if name.split(".")[0] != "model"}
    try:
        return load_restorer(asked, explicit)
    except UserError as error:
        raise UserError(str(error).replace("ckpt=", f"{setting}=")) from error

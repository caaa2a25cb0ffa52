"""Feature evolution: the LR stream's features by depth, of DiT4SR and of the SD3-ControlNet baseline.

Restores images with both checkpoints, reads the LR stream's tokens by forward hooks at chosen sampling steps, shows
them by principal components, and measures how much fine detail and how much of the ground truth's edges each depth
keeps.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from dit4sr.errors import UserError
from dit4sr.studies.command import Request, run_study, setting, write_csv, write_text

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

    from dit4sr.evaluation.benchmarks import BenchmarkImage
    from dit4sr.models.checkpoint import TrainedModel
    from dit4sr.restoration.restorer import Restorer


@dataclass
class Settings:
    """Settings of the study."""

    ckpt: str | None = setting("DiT4SR's checkpoint or its run's folder; null: the newest under paths.outputs", None)
    baseline: str | None = setting("the baseline's; null: the newest of model sd3_controlnet", None)
    model: str = setting("model whose newest checkpoint is taken (dit4sr, or a variant)", "dit4sr")
    images: list[str] = setting("stems of the benchmark's images; []: count of them, spread evenly", [])
    count: int = setting("number of images where none are named", 2)
    at: list[int] = setting("sampling steps, counted from 0; []: the first, the middle and the last", [])
    depths: int = setting("most columns of features in the figure", 5)
    out: str | None = setting("folder of the results", None)


@dataclass(frozen=True, eq=False)
class Stream:
    """A network's LR stream on one image.

    Attributes:
        name: of the model.
        restored: uint8 (H, W, 3).
        sigmas: by sampling step.
        features: sampling step → depth → (h, w, D).
        pictures: the same as colours, (h, w, 3) in [0, 1].
        depth: of the network's stream: its deepest depth.
    """

    name: str
    restored: np.ndarray
    sigmas: dict[int, float]
    features: dict[int, dict[int, Tensor]]
    pictures: dict[int, dict[int, Tensor]]
    depth: int


def main(arguments: list[str] | None = None) -> int:
    """The study's command line."""
    return run_study("controlnet_comparison", __doc__ or "", Settings, study, arguments, verb="evaluate")


def study(request: Request) -> int:
    """Write features_<image>.png, features.csv, table.md and the restored images."""
    from dit4sr.data.images import UnreadableImage, read_image, write_png
    from dit4sr.studies.benchmark import benchmark_of, chosen_images, restorer_for

    s: Settings = request.settings
    if s.depths < 2:
        raise UserError(f"depths={s.depths}: give 2 or more")
    config, explicit = request.config, request.explicit
    benchmark = benchmark_of(config, explicit)
    images = chosen_images(benchmark, s.images, s.count)
    runs = [
        restorer_for(config, explicit, ckpt=ckpt, model=model, setting=asked)
        for asked, ckpt, model in (("baseline", s.baseline, "sd3_controlnet"), ("ckpt", s.ckpt, s.model))
    ]
    check_pair(runs)
    steps = sampling_steps(s.at, min(restorer.sampler.steps for restorer, _ in runs))

    rows: list[dict[str, Any]] = []
    unread = []
    for image in images:
        print(f"{image.name} …", flush=True)
        try:
            lq, truth = read_image(image.lq), read_image(image.hq) if image.hq is not None else None
        except UnreadableImage as error:
            unread.append(f"skipped {image.name}: {error}")
            continue
        streams = [stream_of(*run, image, lq, benchmark.upscale, steps, config["seed"]) for run in runs]
        for stream in streams:
            write_png(request.out / "restored" / stream.name / f"{image.name}.png", stream.restored)
        rows += measured_rows(image, streams, lq, truth)
        from dit4sr.studies.feature_figure import write_figure

        write_figure(request.out / f"features_{image.name}.png", lq, truth, streams, s.depths)
    if not rows:
        raise UserError(f"benchmark {benchmark.name}: {'; '.join(unread)}")
    write_csv(request.out / "features.csv", rows)
    table = table_text(rows, runs, benchmark.name)
    write_text(request.out / "table.md", table)
    print("\n".join([table, *unread, *(str(p) for p in sorted(request.out.glob("features_*.png")))]))
    print("\n".join(str(request.out / name) for name in ("table.md", "features.csv", "restored")))
    return 1 if unread else 0


def check_pair(runs: Sequence[tuple[Restorer, TrainedModel]]) -> None:
    """Refuse networks that cannot be compared.

    Raises:
        UserError: the first is not the baseline, the second is, or their backbones differ.
    """
    (_, first), (_, second) = runs
    for trained, wanted, name in ((first, "sd3_controlnet", "baseline"), (second, "dit4sr", "ckpt")):
        if trained.config["model"]["network"] != wanted:
            raise UserError(
                f"{name}={trained.path} is of model {trained.config['model']['name']}: give {name}= a checkpoint of "
                f"{'sd3_controlnet' if name == 'baseline' else 'dit4sr or a variant'}"
            )
    names = [run.config["backbone"]["name"] for run in (first, second)]
    if names[0] != names[1]:
        raise UserError(
            f"baseline= is on backbone {names[0]}, ckpt= on {names[1]}: give two checkpoints of one backbone"
        )


def sampling_steps(asked: Sequence[int], steps: int) -> list[int]:
    """The steps at which features are read.

    Raises:
        UserError: for one that the sampler does not reach.
    """
    if wrong := [step for step in asked if not 0 <= step < steps]:
        raise UserError(f"at={wrong[0]}: the sampler has steps 0 to {steps - 1}")
    return sorted(set(asked or (0, steps // 2, steps - 1)))


def stream_of(
    restorer: Restorer,
    trained: TrainedModel,
    image: BenchmarkImage,
    lq: np.ndarray,
    upscale: float,
    steps: Sequence[int],
    seed: int,
) -> Stream:
    """Restore an image and read the LR stream on the way."""
    import torch

    from dit4sr.restoration.noise import noise_seed
    from dit4sr.sampling import TRAIN_TIMESTEPS
    from dit4sr.studies.features import depths_of, lr_features, principal_components
    from dit4sr.studies.trajectory import follow

    path = follow(restorer, lq, image.prompt, seed=noise_seed(seed, image.name), upscale=upscale)
    network: Any = restorer.network
    depths = depths_of(network)
    token = restorer.autoencoder.scale * restorer.patch
    height, width = (-(-side // token) for side in image.target)
    features = {}
    for step in steps:
        timestep = torch.full((1,), path.sigmas[step] * TRAIN_TIMESTEPS, device=restorer.device)
        with torch.inference_mode():
            found = lr_features(
                network,
                path.states[step].to(restorer.device),
                path.lr_latent,
                timestep,
                path.tokens,
                path.pooled,
                restorer.tile,
                depths,
            )
        features[step] = {depth: grid[:height, :width] for depth, grid in found.items()}
    luma = token_luma(lq, height, width)
    pictures = {
        step: dict(zip(depths, principal_components([grids[d] for d in depths], luma), strict=True))
        for step, grids in features.items()
    }
    sigmas = {step: path.sigmas[step] for step in steps}
    return Stream(trained.config["model"]["name"], path.restored, sigmas, features, pictures, depths[-1])


def luma_of(image: np.ndarray) -> Tensor:
    """uint8 (H, W, 3) → BT.601 luma in [0, 1], (H, W)."""
    import torch

    return torch.from_numpy(image).float() @ torch.tensor([0.299, 0.587, 0.114]) / 255


def token_luma(image: np.ndarray, height: int, width: int) -> Tensor:
    """An image's luma on the token grid, (h, w): bilinear, with averaging where the grid is coarser."""
    from torch.nn import functional as F

    return F.interpolate(luma_of(image)[None, None], (height, width), mode="bilinear", antialias=True)[0, 0]


def measured_rows(
    image: BenchmarkImage, streams: Sequence[Stream], lq: np.ndarray, truth: np.ndarray | None
) -> list[dict[str, Any]]:
    """A row for each network, sampling step and depth, and for the images themselves on the same grid."""
    from dit4sr.studies.features import edge_alignment, edge_map, high_frequency_share

    first = streams[0]
    height, width = next(iter(next(iter(first.features.values())).values())).shape[:2]
    edges = None if truth is None else edge_map(luma_of(truth), height, width)

    def row(name: str, step: Any, sigma: Any, depth: Any, relative: Any, grid: Tensor) -> dict[str, Any]:
        return {
            "image": image.name,
            "model": name,
            "sampling_step": step,
            "sigma": sigma,
            "depth": depth,
            "relative_depth": relative,
            "high_frequency_share": high_frequency_share(grid),
            "edge_alignment": math.nan if edges is None else edge_alignment(grid, edges),
        }

    references = {"LR input": lq} | ({} if truth is None else {"ground truth": truth})
    rows = [row(name, "", "", "", "", token_luma(i, height, width)[..., None]) for name, i in references.items()]
    for stream in streams:
        for step, grids in stream.features.items():
            for depth, grid in grids.items():
                rows.append(row(stream.name, step, stream.sigmas[step], depth, depth / stream.depth, grid))
    return rows


def table_text(rows: list[dict[str, Any]], runs: Sequence[tuple[Restorer, TrainedModel]], benchmark: str) -> str:
    """table.md: means over the images."""
    groups: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for row in rows:
        groups.setdefault((row["model"], row["sampling_step"], row["depth"]), []).append(row)
    lines = [
        "| LR stream of | sampling step (σ) | depth | high-frequency share | edge alignment |",
        "|---|---|---:|---:|---:|",
    ]
    for (model, step, depth), members in groups.items():
        share, edges = (
            sum(m[name] for m in members) / len(members) for name in ("high_frequency_share", "edge_alignment")
        )
        where = "–" if step == "" else f"{step} ({members[0]['sigma']:.3f})"
        aligned = "–" if math.isnan(edges) else f"{edges:.3f}"
        lines.append(f"| {model} | {where} | {'–' if depth == '' else depth} | {share:.3f} | {aligned} |")
    images = list(dict.fromkeys(row["image"] for row in rows))
    facts = [
        f"{benchmark}: means over {len(images)} image{'s' if len(images) > 1 else ''} ({', '.join(images)})",
        "depth 0: the stream's embedding; depth d: after its d-th block (DiT4SR's ends inside the last one)",
        "high-frequency share: of the channels' energy, at 1/4 cycle per token or more; noise has 0.80",
        "edge alignment: correlation of the features' gradient with that of the ground truth, token by token",
        *(f"{trained.config['model']['name']}: {trained.path} at step {trained.step}" for _, trained in runs),
    ]
    return "\n".join([*lines, "", *(f"- {fact}" for fact in facts)])

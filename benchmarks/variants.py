"""What the sampling benchmark compares: rows of settings, and on a GPU their order, the most important ones first."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from dit4sr.acceleration import AccelerationSettings


@dataclass(frozen=True)
class Variant:
    """A row.

    Attributes:
        settings: of the acceleration.
        dtype: of the weights; None: as they are on the CPU, bfloat16 on a GPU.
        sampling: arguments of the sampler that differ.
        patience: seconds that it is known to need, where that is more than other rows do.
    """

    settings: AccelerationSettings
    dtype: torch.dtype | None = None
    sampling: dict[str, Any] = field(default_factory=dict)
    patience: float | None = None

    @property
    def approximate(self) -> bool:
        """Whether results differ from plain's beyond rounding."""
        return bool(self.settings.approximate or self.sampling)

    def dtype_on(self, device: torch.device) -> torch.dtype | None:
        """What the weights are made, a checkpoint's too; None is as they are."""
        return self.dtype or (torch.bfloat16 if device.type == "cuda" else None)

    @property
    def waits_for_a_compiler(self) -> bool:
        """Whether its first call takes seconds to minutes."""
        return self.settings.compile != "none"


def settings_named(name: str, **changes: Any) -> AccelerationSettings:
    """configs/acceleration, with changes."""
    return replace(AccelerationSettings.named(name), **changes)


def on_the_cpu(compiled: bool) -> dict[str, Variant]:
    """Each transformation alone, then together (exact: fold, fuse and cache)."""
    variants = {
        "plain": settings_named("none"),
        "fold": settings_named("none", fold=True),
        "fuse": settings_named("none", fuse=True),
        "fold, fuse": settings_named("none", fold=True, fuse=True),
        "fold, batch_streams": settings_named("none", fold=True, batch_streams=True),
        "cache": settings_named("none", cache=True),
        "exact": settings_named("exact"),
        "depth_wise: shifts": settings_named("none", depth_wise="shifts"),
    }
    if compiled:
        variants["compiled"] = settings_named("compiled")
        variants["compiled, depth_wise: conv"] = settings_named("compiled", depth_wise="conv")
    return {label: Variant(settings) for label, settings in variants.items()}


def on_the_gpu() -> dict[str, Variant]:
    """What is worth trying on a GPU: first what the targets are about."""
    graphs = settings_named("cuda_graphs")
    variants = {
        "plain": settings_named("none"),
        "exact": settings_named("exact"),
        "cuda_graphs": graphs,
        "compiled": settings_named("compiled"),
        "fp8": settings_named("fp8"),
        "cuda_graphs, combo_kernels": replace(graphs, compile_options={"combo_kernels": True}),
        "cuda_graphs, batch_streams": replace(graphs, batch_streams=True),
        "cuda_graphs, depth_wise: conv": replace(graphs, depth_wise="conv"),
        "cuda_graphs, not fused": replace(graphs, fuse=False),
        "cuda_graphs, tuned": replace(graphs, compile_mode="max-autotune-no-cudagraphs"),
        "step": replace(graphs, compile="step", compile_mode="reduce-overhead", cuda_graphs=False),
    }
    patience = {"step": 150.0, "cuda_graphs, tuned": 240.0}  # one graph of 24 blocks; every product tried in many ways
    made = {label: Variant(settings, patience=patience.get(label)) for label, settings in variants.items()}
    return made | {"plain, float32": Variant(settings_named("none"), torch.float32, patience=30.0)}


def approximations(device: str) -> dict[str, Variant]:
    """What changes the result, beside exact."""
    exact = settings_named("exact")
    variants = {f"exact, {kind}": Variant(replace(exact, quantise=kind)) for kind in ("int8_weights", "int8", "nf4")}
    if device == "cpu":
        variants["exact, bfloat16"] = Variant(replace(exact, network_dtype="bfloat16"))
    for share in (0.05, 0.1, 0.2):
        variants[f"exact, reuse below {share}"] = Variant(replace(exact, reuse_below=share))
    for interval in ((0.2, 1.0), (0.2, 0.9)):
        sampling = {"guidance_interval": interval}
        variants[f"exact, guided within {interval[0]}–{interval[1]}"] = Variant(exact, sampling=sampling)
    return variants


@dataclass(frozen=True)
class Part:
    """A table.

    Attributes:
        model, backbone: names of configs, or of a checkpoint's.
        batch: images sampled at once.
        labels: its rows, in their order; None is all.
        share: of the time, this table and those before it together.
    """

    model: str
    backbone: str
    batch: int
    labels: tuple[str, ...] | None
    share: float


MAIN = ("plain", "exact", "cuda_graphs")

GPU_PARTS = (
    Part("dit4sr", "sd35_medium", 1, (*MAIN, "fp8"), 0.5),
    Part("sd3_controlnet", "sd35_medium", 1, MAIN, 0.75),
    Part("dit4sr", "sd35_medium", 8, MAIN, 1.0),
    Part("sd3_controlnet", "sd35_medium", 8, MAIN, 1.0),
    Part(
        "dit4sr",
        "sd35_medium",
        1,
        ("plain", "cuda_graphs, batch_streams", "cuda_graphs, combo_kernels", "compiled",
         "cuda_graphs, depth_wise: conv", "cuda_graphs, not fused", "plain, float32", "step", "cuda_graphs, tuned"),
        1.0,
    ),
)  # fmt: skip
"""The GPU's tables: the targets first. What a table leaves of its time is the next one's."""


APPROXIMATIONS = 0.2
"""Share of a GPU's time that is kept for the table of approximations, where they are asked for."""


def gpu_parts(rows: Sequence[str]) -> list[Part]:
    """The GPU's tables, and last, where there are rows that stand in none of them (approximations), one of these."""
    known = {label for part in GPU_PARTS for label in part.labels or ()}
    others = [label for label in rows if label not in known]
    if not others:
        return list(GPU_PARTS)
    last = Part("dit4sr", "sd35_medium", 1, ("plain", *others), 1.0)
    return [*(replace(part, share=(1 - APPROXIMATIONS) * part.share) for part in GPU_PARTS), last]


def narrowed(parts: Sequence[Part], rows: Sequence[str], wanted: Collection[str]) -> list[Part]:
    """The tables with their rows named: those that are wanted, and plain, which they refer to.

    Args:
        parts: the tables.
        rows: all there are, for tables that name none.
        wanted: labels; none are all. A table without any of them is left out, and the others have its time.
    """
    chosen = []
    for part in parts:
        own = tuple(n for n in part.labels or rows if n == "plain" or not wanted or n in wanted)
        if set(own) > {"plain"} or set(wanted) <= {"plain"}:
            chosen.append(replace(part, labels=own))
    return [replace(part, share=part.share / chosen[-1].share) for part in chosen]

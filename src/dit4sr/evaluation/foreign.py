"""Other people's super-resolution networks (Real-ESRGAN, SwinIR, …), detected and built by the spandrel library.

Weights are read as tensors alone: safetensors, or .pth, .pt and .ckpt through torch's weights-only loading.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from dit4sr.errors import UserError
from dit4sr.evaluation.benchmarks import Benchmark
from dit4sr.evaluation.checks import check_foreign
from dit4sr.evaluation.methods import ImageFloat, Task
from dit4sr.images import from_hwc
from dit4sr.tiles import ramp_weights


@dataclass(frozen=True)
class Foreign:
    """A network of another project.

    Attributes:
        model: spandrel's ImageModelDescriptor: (1, 3, h, w) in [0, 1] → (1, 3, scale·h, scale·w).
        tile, overlap: in LR pixels; images with a side above ``tile`` are restored tile by tile.
    """

    name: str
    model: Any
    device: torch.device
    tile: int | None
    overlap: int
    settings: dict[str, Any]
    samples: bool = False
    reads_lq: bool = True

    @torch.inference_mode()
    def restore(self, tasks: Sequence[Task]) -> list[ImageFloat]:
        results = []
        for task in tasks:
            restored = restore_tiled(
                self.model, from_hwc(task.lq).to(self.device), self.model.scale, self.tile, self.overlap
            )
            if restored.shape[-2:] != task.image.target:
                restored = F.interpolate(
                    restored, size=task.image.target, mode="bicubic", align_corners=False, antialias=True
                )
            image = restored[0].clamp(0, 1).permute(1, 2, 0).float().cpu().numpy()
            results.append(np.ascontiguousarray(image))
        return results


def restore_tiled(model: Any, lq: Tensor, scale: int, tile: int | None, overlap: int) -> Tensor:
    """Restore in overlapping tiles, blended across their overlap.

    Args:
        model: (1, 3, h, w) → (1, 3, scale·h, scale·w).
        lq: (1, 3, h, w) in [0, 1].
        scale: of the model.
        tile: side in LR pixels; None restores the image whole.
        overlap: LR pixels that neighbouring tiles share; less than ``tile``.
    """
    height, width = lq.shape[-2:]
    if tile is None or max(height, width) <= tile:
        return model(lq)
    total = torch.zeros(1, 3, height * scale, width * scale, device=lq.device)
    for y, down in ramp_weights(height * scale, tile * scale, overlap * scale):
        for x, right in ramp_weights(width * scale, tile * scale, overlap * scale):
            part = model(lq[..., y // scale : y // scale + tile, x // scale : x // scale + tile]).float()
            weight = torch.outer(down, right).to(lq.device)
            total[..., y : y + len(down), x : x + len(right)] += part * weight
    return total


def load_foreign(config: Mapping[str, Any], benchmark: Benchmark, device: str) -> Foreign:
    """Load the checkpoint ``method.path``.

    Raises:
        UserError: spandrel is not installed, the file cannot be read, is of no architecture that spandrel knows or
            of none for this task, or its scale is not the benchmark's and ``method.resize`` is off.
    """
    from dit4sr.restoration.loading import resolve_device

    check_foreign(config)
    path, tile, overlap = Path(config["path"]).expanduser(), config["tile"], config["overlap"]
    model = _describe(path)
    if model.scale != benchmark.upscale and not config["resize"]:
        raise UserError(
            f"{path.name} enlarges {model.scale} times, but benchmark {benchmark.name} needs {benchmark.upscale:g}: "
            "take another checkpoint, or pass method.resize=true to resize its result bicubically"
        )
    used = resolve_device(device)
    model.to(used).eval()
    architecture = model.architecture.name
    settings = {
        "path": str(path),
        "architecture": architecture,
        "scale": model.scale,
        "resized": model.scale != benchmark.upscale,
        "tile": tile,
        "overlap": overlap,
        "device": str(used),
    }
    return Foreign(config["label"] or path.stem, model, used, tile, overlap, settings)


def _describe(path: Path) -> Any:
    try:
        import spandrel
    except ImportError as error:
        raise UserError('method=spandrel needs the spandrel library: pip install "spandrel>=0.4"') from error
    try:
        if path.suffix.lower() == ".safetensors":
            from safetensors.torch import load_file

            state = load_file(path)
        else:
            state = torch.load(path, map_location="cpu", weights_only=True)
        model = spandrel.ModelLoader("cpu").load_from_state_dict(spandrel.canonicalize_state_dict(state))
    except Exception as error:  # of the pickle's, the zip's or the architecture's own making
        said = " ".join(str(error).split())[:160]
        raise UserError(
            f"method.path={path} is no checkpoint that spandrel can build ({type(error).__name__}: {said}): "
            "give the plain weights of a supported architecture"
        ) from error
    if not isinstance(model, spandrel.ImageModelDescriptor) or (model.input_channels, model.output_channels) != (3, 3):
        raise UserError(f"{path.name} ({model.architecture.name}) does not restore RGB images: give another checkpoint")
    return model

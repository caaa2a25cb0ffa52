"""Architecture: one figure a model, drawn from its specification, so that the picture cannot drift from the code.

Writes <model>.svg for each model of configs/model, with the streams X (noisy latent), L (LR latent) and C (text), the
frozen weights, and the control weights marked. Counts are those of the network on the meta device.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dit4sr.studies.command import Request, run_study, setting, write_text


@dataclass
class Settings:
    """Settings of the study."""

    models: list[str] = setting("names of configs/model; [] for all", [])
    backbone: str = setting("a name of configs/backbone", "sd35_medium")
    out: str | None = setting("folder of the figures", None)


def main(arguments: list[str] | None = None) -> int:
    """The study's command line."""
    return run_study("architecture", __doc__ or "", Settings, study, arguments)


def study(request: Request) -> int:
    """Write a figure for each model."""
    from dit4sr.studies.complexity import read_configs

    s: Settings = request.settings
    models = read_configs("model", s.models)
    (backbone,) = read_configs("backbone", [s.backbone])
    for model in models:
        path: Path = request.out / f"{model['name']}.svg"
        write_text(path, figure(model, backbone))
        print(path)
    return 0


def figure(model: Mapping[str, Any], backbone: Mapping[str, Any]) -> str:
    """The SVG of a model on a backbone.

    Args:
        model: configs/model.
        backbone: configs/backbone.
    """
    from dit4sr.models.build import build_on_meta, count_parameters, spec_of
    from dit4sr.studies.block_figure import Facts, draw_block
    from dit4sr.studies.controlnet_figure import draw_controlnet

    counted = count_parameters(build_on_meta(model, backbone))
    facts = Facts(
        model["name"],
        backbone["name"],
        backbone["transformer"],
        counted.total,
        counted.control,
        bool(backbone["pretrained"]),
    )
    return draw_controlnet(facts) if model["network"] == "sd3_controlnet" else draw_block(spec_of(model), facts)

"""The architecture figures: drawn from the specification, complete, and those in the repository up to date."""

import re
import xml.etree.ElementTree as ET
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from tiny_sd3 import DIT4SR, tiny_fields

from dit4sr.models import DiT4SRTransformer2DModel, LRStreamSpec
from dit4sr.models.build import build_on_meta
from dit4sr.studies.architecture import figure, main
from dit4sr.studies.block_figure import Facts, draw_block
from dit4sr.studies.complexity import read_configs

FOLDER = Path(__file__).resolve().parents[2] / "experiments" / "architecture"
MODELS = {model["name"]: model for model in read_configs("model", [])}
(SD35,) = read_configs("backbone", ["sd35_medium"])
CHANGES: dict[str, Any] = {
    "attention": "separate",
    "residual": False,
    "injection": "linear",
    "key_source": "noise",
}


def drawn(spec: LRStreamSpec, **fields: Any) -> str:
    facts = Facts("x", "tiny", tiny_fields(**fields), 1, 1, True)
    return re.sub(r"<desc>.*?</desc>", "", draw_block(spec, facts))


def picture_alone(svg: str, spec: LRStreamSpec) -> str:
    """Without the line of words that states the specification."""
    return re.sub(r"<text[^>]*>attention: .*?</text>", "", svg)


@cache
def at_full_size(name: str) -> str:
    return figure(MODELS[name], SD35)


def parameters_of(svg: str) -> set[str]:
    return {name for names in re.findall(r'data-parameters="([^"]*)"', svg) for name in names.split()}


@pytest.mark.parametrize("field", CHANGES)
def test_each_field_of_the_specification_changes_the_drawing(field: str) -> None:
    other = replace(DIT4SR, **{field: CHANGES[field]})
    assert picture_alone(drawn(other), other) != picture_alone(drawn(DIT4SR), DIT4SR)


def test_each_injection_has_a_drawing_of_its_own() -> None:
    kinds = ("conv", "linear", "per_channel", "none")
    pictures = {picture_alone(drawn(s), s) for k in kinds if (s := replace(DIT4SR, injection=k))}
    assert len(pictures) == 4


def test_what_is_drawn_follows_the_specification() -> None:
    full, without = drawn(DIT4SR), drawn(replace(DIT4SR, residual=False, injection="none"))
    assert 'class="residual"' in full and 'class="injection"' in full and "[X; L; C]" in full
    assert 'class="residual"' not in without and 'class="injection"' not in without
    apart = drawn(replace(DIT4SR, attention="separate"))
    assert "[X; L; C]" not in apart and "Attention of L alone" in apart
    assert 'class="noise-keys"' in drawn(replace(DIT4SR, key_source="noise"))
    assert "dual attention" not in drawn(DIT4SR, dual_attention_layers=())


@pytest.mark.parametrize("injection", ["conv", "linear", "per_channel", "none"])
def test_every_control_weight_is_drawn_and_nothing_else(injection: str) -> None:
    spec = replace(DIT4SR, injection=injection)  # type: ignore[arg-type]
    network = DiT4SRTransformer2DModel(**tiny_fields(), **spec.as_config())
    inside = {
        re.sub(r"\.(weight|bias)$", "", name.removeprefix("transformer_blocks.0."))
        for name in network.control_parameter_names()
        if name.startswith("transformer_blocks.0.")
    }
    assert parameters_of(drawn(spec)) == inside


def test_every_part_of_the_controlnet_is_drawn() -> None:
    network = build_on_meta(MODELS["sd3_controlnet"], SD35)
    parts = {name.split(".")[1] for name in network.control_parameter_names()}
    assert parameters_of(at_full_size("sd3_controlnet")) == parts


@pytest.mark.parametrize("name", MODELS)
def test_figures_are_well_formed_and_within_their_frame(name: str) -> None:
    root = ET.fromstring(at_full_size(name))
    width, height = float(root.attrib["width"]), float(root.attrib["height"])
    for element in root.iter("{http://www.w3.org/2000/svg}rect"):
        box = {k: float(element.attrib.get(k, 0)) for k in ("x", "y", "width", "height")}
        assert box["x"] >= 0 and box["x"] + box["width"] <= width
        assert box["y"] >= 0 and box["y"] + box["height"] <= height


@pytest.mark.parametrize("name", MODELS)
def test_the_figures_in_the_repository_are_those_of_the_code(name: str) -> None:
    message = "draw them again: python experiments/architecture/run.py out=experiments/architecture"
    assert (FOLDER / f"{name}.svg").read_text(encoding="utf-8") == at_full_size(name), message


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["models=variant_b,sd3_controlnet", "backbone=nano", f"out={tmp_path}"]) == 0
    assert sorted(p.name for p in tmp_path.iterdir()) == ["sd3_controlnet.svg", "variant_b.svg"]
    assert "from scratch every weight is trained" in (tmp_path / "variant_b.svg").read_text()
    capsys.readouterr()
    assert main(["models=variant_z", f"out={tmp_path}"]) == 2
    assert capsys.readouterr().err.startswith("error: models: there is no model variant_z; choose among dit4sr")

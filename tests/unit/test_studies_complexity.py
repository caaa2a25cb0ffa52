"""Parameters and FLOPs: the published counts, a hand formula, and the study's tables."""

import csv
from pathlib import Path
from typing import Any

import pytest
import torch

from dit4sr.evaluation.published import published_fidelity, read_published
from dit4sr.models.flops import forward_flops, network_inputs
from dit4sr.studies.complexity import main, read_configs
from dit4sr.studies.counting import count, work_of

MODELS = {model["name"]: model for model in read_configs("model", [])}
BACKBONES = {backbone["name"]: backbone for backbone in read_configs("backbone", [])}


def flops_by_hand(model: dict[str, Any], backbone: dict[str, Any], side: int) -> int:
    """Multiply-adds of every matrix product and convolution of DiT4SR's forward pass, times 2.

    K image tokens a stream, M text tokens, D the width; joint attention of Q queries over N keys costs 2·Q·N·D.
    """
    f, text = backbone["transformer"], backbone["text_encoder"]
    D, p, C = f["attention_head_dim"] * f["num_attention_heads"], f["patch_size"], f["in_channels"]
    K, M, layers = (side // p) ** 2, text["tokens"], f["num_layers"]
    joint, injection = model["lr_attention"] == "joint", model["lr_injection"]
    total = 2 * K * C * p * p * D  # both latents' patches
    total += 256 * D + D * D + text["pooled_width"] * D + D * D + M * text["width"] * D  # time, pooled text, text
    for layer in range(layers):
        last, dual = layer == layers - 1, layer in f["dual_attention_layers"]
        lr_asks = not (last and injection == "none")
        total += D * D * ((9 if dual else 6) + (2 if last else 6))  # modulations
        for with_text in [True, False][: 1 + dual]:
            m = M if with_text else 0
            total += 3 * 2 * K * D * D + (3 if lr_asks else 2) * K * D * D  # W on X and L; P on L
            total += (2 if last else 3) * m * D * D
            text_asks = 0 if last else m
            if joint:
                total += 2 * ((2 if lr_asks else 1) * K + text_asks) * (2 * K + m) * D
            else:
                total += 2 * (K + text_asks) * (K + m) * D + 2 * K * K * D
            total += (K + (K if lr_asks else 0) + text_asks) * D * D  # W_o, P_o, the text's
        streams_in = 2 if lr_asks else 1
        total += streams_in * K * 4 * D * D + (1 if last else 2) * K * 4 * D * D  # W_1, W_2
        total += {"conv": 9 * K * 4 * D, "linear": K * 16 * D * D, "none": 0}[injection]
        total += 0 if last else 8 * M * D * D
    total += 2 * D * D + K * D * p * p * C  # the last modulation and map
    return 2 * total


@pytest.mark.parametrize(
    ("model", "backbone"),
    [(model, "nano") for model in ("dit4sr", "variant_a", "variant_b", "variant_c", "variant_d")]
    + [("variant_a", "small"), ("dit4sr", "sd35_medium")],
)
def test_counted_flops_are_those_of_the_formula(model: str, backbone: str) -> None:
    from dit4sr.models.build import build_on_meta

    chosen = BACKBONES[backbone]
    side = 64 if backbone == "sd35_medium" else chosen["tile"]["size"]
    network = build_on_meta(MODELS[model], chosen).eval()
    assert forward_flops(network, chosen, side) == flops_by_hand(MODELS[model], chosen, side)


def test_flops_on_the_meta_device_are_those_of_a_real_pass() -> None:
    from dit4sr.studies.timing import random_network

    backbone = BACKBONES["nano"]
    network = random_network(MODELS["dit4sr"], backbone, torch.device("cpu"))
    inputs = network_inputs(backbone, 12, device="cpu")
    assert network(*inputs, return_dict=False).shape == (1, 16, 12, 12)
    assert forward_flops(network, backbone, 12, device="cpu") == flops_by_hand(MODELS["dit4sr"], backbone, 12)


def test_published_counts_come_out_at_full_size() -> None:
    full = BACKBONES["sd35_medium"]
    work = work_of(full, target=512, steps=40, guidance=8.0)
    assert (work.tiles, work.passes) == (1, 2)
    ours = count(MODELS["dit4sr"], full, work)
    baseline = count(MODELS["sd3_controlnet"], full, work)
    assert f"{ours.total / 1e6:.2f} {ours.paper / 1e6:.1f} {ours.trainable / 1e6:.2f}" == "2594.05 2716.8 350.88"
    assert f"{baseline.total / 1e6:.2f}" == "3504.34" and baseline.paper == baseline.total
    reported = {row["method"]: float(row["params_m"]) for row in read_published("complexity")}
    assert ours.paper / 1e6 == pytest.approx(reported["DiT4SR"], abs=0.05)
    assert baseline.paper / 1e6 == pytest.approx(reported["SD3-ControlNet"], abs=0.1)
    assert f"{ours.forward / 1e12:.2f} {baseline.forward / 1e12:.2f}" == "5.06 3.41"
    assert ours.image == 40 * ours.step + ours.coding and ours.step == 2 * ours.forward


def test_tiles_and_guidance_multiply_the_work() -> None:
    work = work_of(BACKBONES["nano"], target=512, steps=40, guidance=1.0)
    # 128 latent pixels in tiles of 12 that overlap by 3: 14 along each side.
    assert (work.tiles, work.passes) == (14 * 14, 1)


def test_the_command(tmp_path: Path) -> None:
    arguments = ["models=dit4sr,sd3_controlnet", "backbones=nano", "target=64", "steps=2", "timed_steps=1"]
    assert main([*arguments, "device=cpu", f"out={tmp_path}"]) == 0
    with (tmp_path / "table.csv").open() as file:
        rows = list(csv.DictReader(file))
    measured = [row for row in rows if row["source"].startswith("counted and measured")]
    assert [row["method"] for row in measured] == ["dit4sr", "sd3_controlnet"]
    assert all(float(row["seconds"]) > 0 and row["timed_steps"] == "1" for row in measured)
    reported = [row for row in rows if row["source"].startswith("reported")]
    assert len(reported) == 7 and {row["device"] for row in reported} == {"A100 80 GB"}
    table = (tmp_path / "table.md").read_text()
    assert "Reported" in table and "not measured here" in table and "≈" in table


def test_full_size_is_not_timed_on_a_cpu(tmp_path: Path) -> None:
    assert main(["models=dit4sr", "backbones=sd35_medium", "device=cpu", f"out={tmp_path}"]) == 0
    table = (tmp_path / "table.md").read_text()
    assert "| dit4sr | sd35_medium | 2594.05M | 350.88M | 2716.81M |" in table and "–: not measured" in table


@pytest.mark.parametrize("wrong", ["target=100", "steps=0", "latency=some", "timed_steps=41", "backbones=big"])
def test_mistakes(wrong: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([wrong, f"out={tmp_path}"]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_published_fidelity_is_by_benchmark() -> None:
    assert published_fidelity("realsr")["DiT4SR"] == {"psnr": 23.378, "ssim": 0.664}
    assert published_fidelity("drealsr")["SeeSR"]["psnr"] == 28.074
    assert published_fidelity("demo") == {}

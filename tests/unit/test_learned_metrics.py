"""Metrics that are networks, from files of the published format to the number, by random weights.

The expected values are computed here from the papers' formulas, with torchvision's layers and nothing of pyiqa's.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
from tiny_checkpoint import picture
from torch import Tensor, nn
from torch.nn import functional as F

from dit4sr.evaluation.metrics import MetricSet, build_metrics

LPIPS_FILE, ALEXNET_FILE = "LPIPS_v0.1_alex-df73285e.pth", "alexnet-owt-7be5be79.pth"
DISTS_FILE, VGG_FILE = "DISTS_weights-f5e65c96.pth", "vgg16-397923af.pth"
ALEXNET_WIDTHS, ALEXNET_ENDS = (64, 192, 384, 256, 256), (2, 5, 8, 10, 12)
VGG_WIDTHS, VGG_ENDS = (3, 64, 128, 256, 512, 512), (4, 9, 16, 23, 30)


def built(folder: Path, *names: str) -> MetricSet:
    return build_metrics({"names": list(names), "protocol": "ycbcr", "border": None, "weights_dir": str(folder)})


def backbone(path: Path, network: Any) -> nn.Sequential:
    """Random weights of a torchvision network as a file, its classifier as one repeated number; its features."""
    torch.manual_seed(0)
    with torch.device("meta"):
        state = network().state_dict()
    features: nn.Sequential = network().features.eval()
    own = {f"features.{name}": value for name, value in features.state_dict().items()}
    torch.save({name: own.get(name, torch.zeros(1).expand(value.shape)) for name, value in state.items()}, path)
    return features


@pytest.fixture(scope="module")
def alexnet(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, nn.Sequential]:
    folder = tmp_path_factory.mktemp("lpips")
    return folder, backbone(folder / ALEXNET_FILE, torchvision.models.alexnet)


def images() -> tuple[np.ndarray, np.ndarray, Tensor, Tensor]:
    truth = picture(96, 96, 1)
    noise = np.random.default_rng(0).normal(0, 12, truth.shape)
    restored = np.clip(truth + noise, 0, 255).astype(np.uint8)
    tensors = [torch.from_numpy(image).permute(2, 0, 1)[None].float() / 255 for image in (restored, truth)]
    return restored, truth, tensors[0], tensors[1]


def test_lpips(alexnet: tuple[Path, nn.Sequential]) -> None:
    """Σ over layers of the spatial mean of w · (x̂ − ŷ)², x̂ unit vectors over channels (arXiv 1801.03924)."""
    folder, features = alexnet
    weights = [torch.rand(1, width, 1, 1) for width in ALEXNET_WIDTHS]
    torch.save({f"lin{i}.model.1.weight": w for i, w in enumerate(weights)}, folder / LPIPS_FILE)
    found = built(folder, "psnr", "lpips")
    assert found.missing == ()
    restored, truth, x, y = images()
    mean, std = (torch.tensor(v)[None, :, None, None] for v in ((-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)))
    total = 0.0
    with torch.no_grad():
        a, b = ((2 * image - 1 - mean) / std for image in (x, y))
        for number, layer in enumerate(features):
            a, b = layer(a), layer(b)
            if number + 1 in ALEXNET_ENDS:
                difference = (F.normalize(a, dim=1, eps=1e-10) - F.normalize(b, dim=1, eps=1e-10)).square()
                total += float((weights[ALEXNET_ENDS.index(number + 1)] * difference).sum(1).mean())
    assert found.metrics[1](restored, truth) == pytest.approx(total, rel=1e-4)
    assert found.metrics[1](truth, truth) == pytest.approx(0, abs=1e-7)


def test_dists(tmp_path: Path) -> None:
    """1 − Σ over layers of α · l + β · s, of textures and structures (arXiv 2004.07728)."""
    features = backbone(tmp_path / VGG_FILE, torchvision.models.vgg16)
    alpha, beta = torch.rand(1, sum(VGG_WIDTHS), 1, 1), torch.rand(1, sum(VGG_WIDTHS), 1, 1)
    torch.save({"alpha": alpha, "beta": beta}, tmp_path / DISTS_FILE)
    found = built(tmp_path, "dists")
    assert found.missing == ()
    restored, truth, x, y = images()
    hann = torch.hann_window(5, periodic=False)[1:-1]
    kernel = torch.outer(hann, hann) / torch.outer(hann, hann).sum()
    layers: list[tuple[Tensor, Tensor]] = [(x, y)]
    mean, std = (torch.tensor(v)[None, :, None, None] for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    with torch.no_grad():
        a, b = ((image - mean) / std for image in (x, y))
        for number, layer in enumerate(features):
            if isinstance(layer, nn.MaxPool2d):
                width = a.shape[1]
                a, b = (
                    (
                        F.conv2d(t.square(), kernel.expand(width, 1, 3, 3), stride=2, padding=1, groups=width) + 1e-12
                    ).sqrt()
                    for t in (a, b)
                )
            else:
                a, b = layer(a), layer(b)
            if number + 2 in VGG_ENDS:
                layers.append((a, b))
    total, weight = 0.0, (alpha.sum() + beta.sum()).item()
    parts = zip(alpha.split(VGG_WIDTHS, 1), beta.split(VGG_WIDTHS, 1), layers, strict=True)
    for own_alpha, own_beta, (a, b) in parts:
        mean_a, mean_b = a.mean((2, 3), keepdim=True), b.mean((2, 3), keepdim=True)
        var_a, var_b = (
            (a - mean_a).square().mean((2, 3), keepdim=True),
            (b - mean_b).square().mean((2, 3), keepdim=True),
        )
        covariance = (a * b).mean((2, 3), keepdim=True) - mean_a * mean_b
        texture = (2 * mean_a * mean_b + 1e-6) / (mean_a**2 + mean_b**2 + 1e-6)
        structure = (2 * covariance + 1e-6) / (var_a + var_b + 1e-6)
        total += float((own_alpha * texture + own_beta * structure).sum()) / weight
    assert found.metrics[0](restored, truth) == pytest.approx(1 - total, abs=2e-5)
    assert found.metrics[0](truth, truth) == pytest.approx(0, abs=1e-5)


@pytest.mark.parametrize("content", [{"other": torch.zeros(3)}, {}, {"params": {"conv.weight": torch.zeros(3)}}])
def test_another_file_under_the_name_is_refused(alexnet: tuple[Path, nn.Sequential], content: dict[str, Any]) -> None:
    """Not passed over, which would leave random weights and another value in every run."""
    folder, _ = alexnet
    torch.save(content, folder / LPIPS_FILE)
    found = built(folder, "psnr", "lpips")
    assert [m.name for m in found.metrics] == ["psnr"]
    assert "none of its tensors is one of the network's" in found.missing[0].reason
    assert "get it again" in found.missing[0].reason

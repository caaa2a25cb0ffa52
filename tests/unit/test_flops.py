"""FLOPs of a training step: the formula against torch's counter on real forward and backward passes, and by hand."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from math import prod
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf
from tiny_sd3 import SPECS, tiny_network, tiny_transformer
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from dit4sr.config import config_dir
from dit4sr.models import SD3ControlNet
from dit4sr.models.flops import TrainingFlops, step_flops, training_flops


def conv_backward(grad_out: Any, x: Any, w: Any, *args: Any, out_shape: Any = None, **kwargs: Any) -> int:
    """Torch's counter takes the weight's gradient of a grouped convolution for that of a dense one: C² for C."""
    input_too, weight_too = args[-1][:2]
    return 2 * prod(grad_out) * prod(w[1:]) * (int(input_too) + int(weight_too))


def counted_by_torch(network: nn.Module, inputs: tuple[Tensor, ...]) -> int:
    """Of a real pass forward and backward; attention as matrix products: a fused one computes its scores twice."""
    mapping: dict[Any, Callable[..., int]] = {torch.ops.aten.convolution_backward: conv_backward}
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False, custom_mapping=mapping) as counter:
        network(*inputs, return_dict=False).sum().backward()
    return counter.get_total_flops()


def inputs(batch: int = 2) -> tuple[Tensor, ...]:
    torch.manual_seed(0)
    z, lr = torch.randn(2, batch, 4, 6, 8).unbind(0)
    return z, lr, torch.full((batch,), 300.0), torch.randn(batch, 5, 12), torch.randn(batch, 10)


def freeze(network: Any, which: str) -> None:
    control = set(network.control_parameter_names())
    for number, (name, parameter) in enumerate(network.named_parameters()):
        parameter.requires_grad_(
            {"nothing": True, "base": name in control, "control": name not in control, "every third": number % 3 != 0,
             "all but one": name.endswith("transformer_blocks.1.ff.net.2.weight")}[which]
        )  # fmt: skip


FROZEN = ("nothing", "base", "control", "every third", "all but one")


@pytest.mark.parametrize("frozen", FROZEN)
@pytest.mark.parametrize("spec", SPECS)
def test_every_variant_with_any_part_frozen(spec: str, frozen: str) -> None:
    network = tiny_network(SPECS[spec]).train()
    freeze(network, frozen)
    counted = training_flops(network, inputs())
    assert counted.model == counted_by_torch(network, inputs())


@pytest.mark.parametrize("frozen", FROZEN)
def test_the_baseline_with_any_part_frozen(frozen: str) -> None:
    network = SD3ControlNet.from_sd3(tiny_transformer()).train()
    freeze(network, frozen)
    assert training_flops(network, inputs()).model == counted_by_torch(network, inputs())


def test_no_gradient_is_left_behind() -> None:
    network = tiny_network().train()
    training_flops(network, inputs())
    assert all(parameter.grad is None for parameter in network.parameters())


class Chain(nn.Module):
    """Three products; what trains is the second."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.third = nn.Linear(3, 5), nn.Linear(5, 7), nn.Linear(7, 2)
        self.first.requires_grad_(False)
        self.third.requires_grad_(False)

    def forward(self, x: Tensor, return_dict: bool = False) -> Tensor:
        unread = self.second(self.first(x)).sum()  # no loss depends on it: no gradient is computed
        assert unread.requires_grad
        return self.third(self.second(self.first(x)))


def test_by_hand() -> None:
    counted = training_flops(Chain(), [torch.zeros(4, 3)])
    first, second, third = (2 * 4 * n for n in (3 * 5, 5 * 7, 7 * 2))
    assert counted == TrainingFlops(forward=2 * (first + second) + third, activations=third, weights=second)


def config(group: str, name: str) -> Any:
    return OmegaConf.to_container(OmegaConf.load(config_dir() / group / f"{name}.yaml"), resolve=True)


def test_the_published_network_at_its_size() -> None:
    """The terms of docs/scaling.md, in TFLOP for one crop of 512×512."""
    counted = step_flops(config("model", "dit4sr"), config("backbone", "sd35_medium"), 64)
    terms = [round(part / 1e12, 2) for part in (counted.forward, counted.activations, counted.weights)]
    assert terms == [5.06, 6.01, 0.72]
    assert counted.hardware == counted.model == counted.forward + counted.activations + counted.weights


def test_checkpointing_computes_the_blocks_again() -> None:
    backbone = config("backbone", "nano")
    backbone["transformer"] |= {"num_layers": 1, "caption_projection_dim": 64}
    counted = step_flops(config("model", "dit4sr"), backbone, 4, checkpointing=True)
    assert 0.5 * counted.forward < counted.recomputed <= counted.forward
    assert counted.hardware == counted.model + counted.recomputed
    assert replace(counted, recomputed=0) == step_flops(config("model", "dit4sr"), backbone, 4)


def test_a_product_that_is_not_known_is_refused() -> None:
    class Other(nn.Module):
        def forward(self, x: Tensor, return_dict: bool = False) -> Tensor:
            return torch.matmul(x, x)

    with pytest.raises(NotImplementedError, match="matmul"):
        training_flops(Other(), [torch.zeros(2, 2)])

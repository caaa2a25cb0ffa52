"""Exact accelerations: the same velocity as the plain network, for every model and every arrangement."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import pytest
import torch
from tiny_acceleration import EXACT, NONE, sampled
from tiny_sd3 import DIT4SR, SPECS, Inputs, relative_error, tiny_controlnet, tiny_inputs, tiny_network

from dit4sr.acceleration import accelerate
from dit4sr.acceleration.expansion import linear_gelu
from dit4sr.acceleration.folding import fold
from dit4sr.acceleration.injection import CONVOLUTIONS, KernelConv, convolution_of
from dit4sr.errors import UserError
from dit4sr.models.attention_kernel import attention_kernel
from dit4sr.sampling import TiledNetwork

ARRANGEMENTS = {
    "fold": replace(NONE, fold=True),
    "fuse": replace(NONE, fuse=True),
    "cache": replace(NONE, cache=True),
    "shifts": replace(NONE, depth_wise="shifts"),
    "exact": EXACT,
    "batched": replace(EXACT, batch_streams=True, depth_wise="shifts"),
    "math": replace(NONE, attention="math"),
}
MODELS = [*SPECS, "sd3_controlnet"]


def network_of(model: str, **fields: Any) -> Any:
    return tiny_controlnet(**fields) if model == "sd3_controlnet" else tiny_network(SPECS[model], **fields)


def in_float64(inputs: Inputs) -> Inputs:
    return Inputs(*(getattr(inputs, f).double() for f in ("z", "lr", "timestep", "tokens", "pooled")))


@pytest.mark.parametrize(("dual", "qk_norm"), [((), "rms_norm"), ((0, 2), "rms_norm"), ((0,), None)])
@pytest.mark.parametrize("model", MODELS)
@torch.no_grad()
def test_every_arrangement_is_the_plain_network(model: str, dual: tuple[int, ...], qk_norm: str | None) -> None:
    network = network_of(model, dual_attention_layers=dual, qk_norm=qk_norm).double()
    one, many = in_float64(tiny_inputs(6, 10, batch=1)), in_float64(tiny_inputs(10, 4, batch=3))
    calls: list[tuple[Inputs, dict[str, Any]]] = [(one, {}), (many, {}), (many, {"lr": None})]
    expected = [inputs.call(network, **changes) for inputs, changes in calls]
    for name, settings in ARRANGEMENTS.items():
        fast = accelerate(copy.deepcopy(network), settings)
        for (inputs, changes), velocity in zip(calls, expected, strict=True):
            # Diffusers' RMSNorm and time embedding round to float32 within float64.
            assert relative_error(inputs.call(fast, **changes), velocity) < 1e-6, name


@pytest.mark.parametrize("layers", [2, 3, 4, 5])
@torch.no_grad()
def test_controlnets_of_any_depth(layers: int) -> None:
    network = tiny_controlnet(num_layers=layers, dual_attention_layers=(0, 1)).double()
    inputs = in_float64(tiny_inputs())
    expected = inputs.call(network)
    assert relative_error(inputs.call(accelerate(network, EXACT)), expected) < 1e-6


@pytest.mark.parametrize("model", MODELS)
@torch.no_grad()
def test_in_float32_and_bfloat16(model: str) -> None:
    inputs = tiny_inputs(batch=3)
    plain = inputs.call(network_of(model))
    assert relative_error(inputs.call(accelerate(network_of(model), EXACT)), plain) < 2e-5
    half = network_of(model).bfloat16()
    rounding = relative_error(inputs.call(half).float(), plain)
    fast = accelerate(half, EXACT)
    velocity = inputs.call(fast)
    assert velocity.dtype == torch.bfloat16
    assert relative_error(velocity.float(), plain) < max(2 * rounding, 0.02), rounding


@torch.no_grad()
def test_a_folded_map_is_both() -> None:
    first, second = torch.nn.Linear(5, 7).double(), torch.nn.Linear(7, 3).double()
    x = torch.randn(4, 5, dtype=torch.float64)
    assert torch.allclose(fold(first, second)(x), second(first(x)), rtol=0, atol=1e-14)
    half = fold(first.bfloat16(), second.bfloat16())
    exact = second.weight.float() @ first.weight.float()
    assert torch.equal(half.weight, exact.bfloat16()), "folded in float32 and rounded once"


@pytest.mark.parametrize("model", ["dit4sr", "sd3_controlnet"])
@torch.no_grad()
def test_tokens_lie_one_by_one_in_memory(model: str) -> None:
    """What the first block is given, all that follow inherit: transposed, no kernel would read whole lines."""
    fast = accelerate(network_of(model), EXACT)
    seen: list[bool] = []
    for trunk in fast.trunks:
        for block in trunk.blocks:
            block.register_forward_pre_hook(lambda _, given: seen.extend(x.is_contiguous() for x in given[:2]))
    inputs = tiny_inputs(6, 10, batch=2)
    inputs.call(fast)
    inputs.call(fast, lr=None)
    assert len(seen) >= 8 and all(seen)


@torch.no_grad()
def test_a_product_that_ends_in_a_gelu() -> None:
    """On the CPU torch's function has the exact GELU, on a GPU the tanh approximation; the product is the same."""
    linear, x = torch.nn.Linear(5, 7).double(), torch.randn(2, 3, 4, 5, dtype=torch.float64)
    result = linear_gelu(x, linear.weight, linear.bias)
    assert torch.allclose(result, torch.nn.functional.gelu(linear(x)), rtol=0, atol=1e-14)
    assert result.is_contiguous()


@pytest.mark.parametrize(
    ("compiled", "device", "chosen"),
    [("none", "cpu", "conv"), ("none", "cuda", "conv"), ("blocks", "cpu", "shifts"), ("step", "cuda", "kernel")],
)
def test_how_the_convolution_is_computed_follows_from_compiler_and_device(
    compiled: Any, device: str, chosen: str
) -> None:
    settings = replace(EXACT, compile=compiled, depth_wise="auto")
    assert convolution_of(settings, torch.device(device)) == chosen
    assert convolution_of(replace(settings, depth_wise="conv"), torch.device(device)) == "conv"


@torch.no_grad()
def test_a_kernel_that_was_moved_to_the_cpu_is_the_convolution() -> None:
    pytest.importorskip("triton")
    conv = torch.nn.Conv2d(6, 6, 3, padding=1, groups=6).double()
    h, scale = torch.randn(2, 1, 15, 6, dtype=torch.float64), torch.tensor(1.2, dtype=torch.float64)
    image = h[1].unflatten(1, (3, 5)).permute(0, 3, 1, 2)
    expected = h[0] + 1.2 * conv(image).permute(0, 2, 3, 1).flatten(1, 2)
    assert torch.allclose(KernelConv(conv)(h, (3, 5), scale)[0], expected, rtol=0, atol=1e-14)


@torch.no_grad()
def test_weights_are_taken_over_and_not_kept_twice() -> None:
    network = tiny_network()
    plain = sum(p.numel() for p in network.parameters())
    unread = 16 * 16 + 16 + 8  # the last block's queries of the text, and their norm
    fast = accelerate(network, EXACT)
    # P W takes the place of P, beside W, which X needs.
    assert sum(p.numel() for p in fast.parameters()) == plain - unread
    assert not any(p.requires_grad for p in fast.parameters())
    with pytest.raises(UserError, match="taken over"):
        tiny_inputs().call(network)
    with pytest.raises(UserError, match="cannot be saved"):
        fast.save_pretrained("somewhere")


@pytest.mark.parametrize("model", ["dit4sr", "sd3_controlnet"])
@torch.no_grad()
def test_a_prepared_sampling_is_the_plain_one(model: str) -> None:
    lr = tiny_inputs(6, 10, batch=3).lr
    large = tiny_inputs(14, 10, batch=2).lr
    plain, fast = network_of(model), accelerate(network_of(model), EXACT)
    cases: list[tuple[torch.Tensor, Any, dict[str, Any]]] = [
        (lr, lambda n: n, {}),
        (lr, lambda n: n, {"guidance": 1.0}),
        (lr, lambda n: TiledNetwork(n, 12, 4), {}),
        (lr, lambda n: TiledNetwork(n, 12, 4, batch=2), {}),
        (large, lambda n: TiledNetwork(n, 8, 4, batch=4), {}),
        (large, lambda n: TiledNetwork(n, 8, 4, batch=64), {}),
        (large, lambda n: TiledNetwork(n, 8, 4, batch=4), {"guidance_interval": (0.2, 0.95)}),
    ]
    for latent, wrap, changes in cases:
        expected = sampled(wrap(plain), latent, **changes)
        assert relative_error(sampled(wrap(fast), latent, **changes), expected) < 5e-5, changes


@torch.no_grad()
def test_other_schedulers_are_prepared_too() -> None:
    from diffusers import FlowMatchHeunDiscreteScheduler

    lr = tiny_inputs(6, 10, batch=1).lr
    expected = sampled(tiny_network(), lr, scheduler=FlowMatchHeunDiscreteScheduler())
    result = sampled(accelerate(tiny_network(), EXACT), lr, scheduler=FlowMatchHeunDiscreteScheduler())
    assert relative_error(result, expected) < 5e-5


@torch.no_grad()
def test_what_no_step_changes_is_computed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    fast = accelerate(tiny_network(), EXACT)
    calls = {"text": 0, "time": 0, "patch": 0}

    def count(name: str) -> Any:
        def hook(*_: Any) -> None:
            calls[name] += 1

        return hook

    fast.trunk.embed_text.register_forward_hook(count("text"))
    fast.trunk.modulations.linears[0].register_forward_hook(count("time"))
    fast.trunk.embed.embed.proj.register_forward_hook(count("patch"))
    expected = sampled(fast, tiny_inputs().lr)
    # Both prompts once; the LR latent once, the noisy one at each of the four steps.
    assert calls == {"text": 2, "time": 2, "patch": 5}
    # Where the whole schedule's modulations would be too large, they come a window at a time.
    monkeypatch.setattr("dit4sr.acceleration.modulations.WINDOW_BYTES", 1)
    assert relative_error(sampled(fast, tiny_inputs().lr), expected) < 1e-5
    assert calls["time"] == 2 + 8


@torch.no_grad()
@pytest.mark.parametrize("kind", CONVOLUTIONS)
@torch.no_grad()
def test_the_injections_scale_is_not_rounded_to_bfloat16(kind: str) -> None:
    """1.2 would be 1.203: a quarter of a percent more of L everywhere."""
    conv = torch.nn.Conv2d(64, 64, 3, padding=1, groups=64).bfloat16()
    h = torch.randn(2, 1, 32 * 32, 64).bfloat16()
    h[0] = 0
    injection = CONVOLUTIONS[kind](conv)
    added = injection.of_lr(h[1], (32, 32)).double()
    for scale in (1.2, torch.tensor(1.2)):
        found = injection(h.clone(), (32, 32), scale)[0].double()
        assert abs(float((found * added).sum() / (added * added).sum()) - 1.2) < 5e-4


def test_the_injections_scale_can_be_changed() -> None:
    network = tiny_network()
    network.lr_injection_scale = 1.2
    fast = accelerate(copy.deepcopy(network), EXACT)
    assert fast.lr_injection_scale == 1.2
    for scale in (1.2, 0.5):
        network.lr_injection_scale = fast.lr_injection_scale = scale
        assert relative_error(tiny_inputs().call(fast), tiny_inputs().call(network)) < 1e-5


def test_impossible_latents_are_refused() -> None:
    fast = accelerate(tiny_network(DIT4SR), EXACT)
    for height, width, hint in ((5, 6, "multiples of the patch"), (6, 20, "at most 18")):
        with pytest.raises(ValueError, match=hint):
            tiny_inputs(height, width).call(fast)
    with pytest.raises(ValueError, match="the LR latent is"):
        tiny_inputs().call(fast, lr=tiny_inputs(6, 8).lr)


@torch.no_grad()
def test_any_kernel_of_attention_gives_the_same() -> None:
    q = torch.randn(1, 2, 5, 8)
    expected = torch.nn.functional.scaled_dot_product_attention(q, q, q)
    for choice in ("auto", "cudnn", "flash", "efficient", "math"):
        with attention_kernel(choice, q.device):
            result = torch.nn.functional.scaled_dot_product_attention(q, q, q)
        assert torch.allclose(result, expected, atol=1e-5), choice


@torch.no_grad()
def test_control_weights_of_another_type_are_brought_to_the_bases() -> None:
    network = tiny_network().bfloat16()
    for name, parameter in network.named_parameters():
        if name in network.control_parameter_names():
            parameter.data = parameter.data.float()
    expected = tiny_inputs().call(network).float()
    fast = accelerate(network, EXACT)
    assert {parameter.dtype for parameter in fast.parameters()} == {torch.bfloat16}
    assert relative_error(tiny_inputs().call(fast).float(), expected) < 0.03


def test_weights_that_cannot_be_folded_are_refused() -> None:
    quantised = tiny_network()
    weight = torch.zeros(16, 16, dtype=torch.int8)
    quantised.transformer_blocks[0].attn.to_q.weight = torch.nn.Parameter(weight, requires_grad=False)
    with pytest.raises(UserError, match="a quantised network cannot be accelerated"):
        accelerate(quantised, EXACT)
    adapted = tiny_network()
    adapted.peft_config = {"default": object()}
    with pytest.raises(UserError, match="fuse them first"):
        accelerate(adapted, EXACT)


def test_nothing_asked_leaves_the_network_alone() -> None:
    network = tiny_network()
    assert accelerate(network, NONE) is network
    with pytest.raises(TypeError, match="cannot be accelerated"):
        accelerate(torch.nn.Linear(1, 1), EXACT)

"""What the LR stream can and cannot do to X, and the gradients of every parameter."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from tiny_sd3 import DIT4SR, SPECS, randomise, tiny_controlnet, tiny_inputs, tiny_network, tiny_transformer
from torch import Tensor, nn
from torch.nn import functional as F

from dit4sr.models import DiT4SRTransformer2DModel
from dit4sr.models.blocks import LRStreamBlock

GRID = (3, 5)
K, M, D = 15, 5, 16

NETWORKS: dict[str, Callable[..., nn.Module]] = {
    **{name: lambda spec=spec, **fields: tiny_network(spec, **fields) for name, spec in SPECS.items()},
    "sd3_controlnet": tiny_controlnet,
}


# Gradients


def gradients_of(network: nn.Module, trainable: set[str]) -> dict[str, float]:
    """Largest gradient of every parameter that got one."""
    for name, p in network.named_parameters():
        p.requires_grad_(name in trainable)
    inputs = tiny_inputs()
    (inputs.call(network.train()) - inputs.lr).square().mean().backward()
    return {n: float(p.grad.abs().max()) for n, p in network.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("layers", [2, 3, 4])
@pytest.mark.parametrize("flavour", ["pretrained", "scratch"])
@pytest.mark.parametrize("model", NETWORKS)
def test_every_trainable_tensor_lives_and_no_frozen_one_does(model: str, flavour: str, layers: int) -> None:
    network = NETWORKS[model](num_layers=layers, dual_attention_layers=(0, 1))
    names = dict(network.named_parameters())
    candidates = set(network.control_parameter_names() if flavour == "pretrained" else names)
    trainable = candidates - set(network.unreachable_parameter_names())
    gradients = gradients_of(network, trainable)
    assert set(gradients) == trainable
    # Far above what rounding leaves of a gradient that is mathematically zero.
    dead = {n for n, g in gradients.items() if g < 1e-6 * max(gradients.values())}
    assert not dead


@pytest.mark.parametrize("model", NETWORKS)
def test_unreachable_parameters_get_no_gradient_at_all(model: str) -> None:
    """The list is complete in the other direction too: nothing that has a gradient stands in it."""
    network = NETWORKS[model]()
    gradients = gradients_of(network, set(dict(network.named_parameters())))
    unreachable = set(network.unreachable_parameter_names())
    # (diffusers' own blocks compute some of them and throw the result away: a gradient of zero)
    moved = {n for n, g in gradients.items() if g != 0}
    assert moved == set(dict(network.named_parameters())) - unreachable


def test_gradients_at_the_zero_start() -> None:
    """On a pretrained base P_q and P_o begin with exactly zero gradient; P_k, P_v and the injection move."""
    network = DiT4SRTransformer2DModel.from_sd3(tiny_transformer(), DIT4SR, control_init="zero")
    gradients = gradients_of(network, set(network.control_parameter_names()))
    for name, gradient in gradients.items():
        still = ".to_q_control." in name or ".to_out_control." in name
        # V_L is zero, so only the values' own map and the injection see L; a key of zero still
        # takes part in the softmax.
        assert (gradient == 0) == still, (name, gradient)


def test_first_step_is_not_sd3() -> None:
    """Zero-initialised maps do not switch the LR stream off: keys of zero still take softmax mass."""
    network = DiT4SRTransformer2DModel.from_sd3(tiny_transformer(), DIT4SR, control_init="zero")
    inputs = tiny_inputs()
    assert not torch.allclose(inputs.call(network), inputs.call(network, lr=None), rtol=1e-3)


# Who reaches whom


def scaled(network: DiT4SRTransformer2DModel, scale: float) -> DiT4SRTransformer2DModel:
    network.lr_injection_scale = scale
    return network


@pytest.mark.parametrize("dual", [(), (0, 1, 2)])
@torch.no_grad()
def test_separate_attention_separates(dual: tuple[int, ...]) -> None:
    """Variant A with the injection off is SD3: whatever L is, X cannot see it."""
    network = scaled(tiny_network(SPECS["variant_a"], dual_attention_layers=dual), 0)
    inputs = tiny_inputs()
    velocity = inputs.call(network)
    assert torch.equal(inputs.call(network, lr=inputs.lr * 5 + 1), velocity)
    torch.testing.assert_close(inputs.call(network, lr=None), velocity, rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_separate_attention_reaches_x_by_the_injection_alone() -> None:
    network, inputs = tiny_network(SPECS["variant_a"]), tiny_inputs()
    assert not torch.allclose(inputs.call(network, lr=-inputs.lr), inputs.call(network), rtol=1e-2)


@pytest.mark.parametrize("variant", sorted(set(SPECS) - {"variant_a"}))
@torch.no_grad()
def test_joint_attention_reaches_x_with_the_injection_off(variant: str) -> None:
    network, inputs = scaled(tiny_network(SPECS[variant]), 0), tiny_inputs()
    assert not torch.allclose(inputs.call(network, lr=-inputs.lr), inputs.call(network), rtol=1e-2)


@torch.no_grad()
def test_injection_scale_is_linear_in_one_block() -> None:
    """X's update is affine in s, where only one block injects (the last, whose output is X)."""
    network, inputs = tiny_network(num_layers=1, dual_attention_layers=()), tiny_inputs()
    # Past the block come a norm and a linear map, so look at the block's own output.
    captured: list[Tensor] = []
    network.transformer_blocks[0].register_forward_hook(lambda m, a, out: captured.append(out[0]))
    for scale in 0.0, 1.0, 1.2:
        inputs.call(scaled(network, scale))
    off, one, more = captured
    assert not torch.allclose(off, one, rtol=1e-2)
    torch.testing.assert_close(more - off, 1.2 * (one - off), rtol=1e-4, atol=1e-5)


def tiny_block(variant: str, *, last: bool = False, dual: bool = True) -> LRStreamBlock:
    block = LRStreamBlock(SPECS[variant], dim=D, heads=2, qk_norm="rms_norm", dual_attention=dual, last=last)
    randomise(block, seed=5)
    return block


def run_block(block: LRStreamBlock, x: Tensor, lr: Tensor, text: Tensor, scale: float = 1.0) -> tuple[Tensor, ...]:
    """(X, L, C) after the block."""
    temb = torch.linspace(-1, 1, D).expand(x.shape[0], D)
    image, text = block(torch.cat([x, lr], dim=1), text, temb, 2, GRID, scale)
    return image[:, :K], image[:, K:], text


def block_inputs() -> dict[str, Tensor]:
    g = torch.Generator().manual_seed(3)
    return {
        "x": torch.randn(2, K, D, generator=g),
        "lr": torch.randn(2, K, D, generator=g),
        "text": torch.randn(2, M, D, generator=g),
    }


@pytest.mark.parametrize(
    ("variant", "reached"),
    [
        # Which of the outputs (X, L, C) change when the stream's input does; the injection is off.
        ("dit4sr", {"x": (True, True, True), "lr": (True, True, True), "text": (True, True, True)}),
        ("variant_b", {"x": (True, True, True), "lr": (True, True, True), "text": (True, True, True)}),
        ("variant_a", {"x": (True, False, True), "lr": (False, True, False), "text": (True, False, True)}),
    ],
)
@torch.no_grad()
def test_who_attends_to_whom(variant: str, reached: dict[str, tuple[bool, ...]]) -> None:
    block, streams = tiny_block(variant), block_inputs()
    before = run_block(block, **streams, scale=0)
    for name, expected in reached.items():
        after = run_block(block, **(streams | {name: streams[name].flip(-1)}), scale=0)
        changed = tuple(not torch.equal(a, b) for a, b in zip(before, after, strict=True))
        assert changed == expected, name


@torch.no_grad()
def test_dual_attention_joins_the_two_image_streams() -> None:
    """With no text in it: the second attention alone carries X to L and L to X, and neither to C."""
    joint, separate = tiny_block("dit4sr").attn2, tiny_block("variant_a").attn2
    streams = block_inputs()
    x, lr = streams["x"], streams["lr"]

    def run(attention: nn.Module, x: Tensor, lr: Tensor) -> tuple[Tensor, Tensor]:
        out, text = attention(torch.cat([x, lr], dim=1), None, 2)
        assert text is None
        return out[:, :K], out[:, K:]

    for attention, joined in ((joint, True), (separate, False)):
        before = run(attention, x, lr)
        assert torch.equal(run(attention, x, lr.flip(-1))[0], before[0]) != joined
        assert torch.equal(run(attention, x.flip(-1), lr)[1], before[1]) != joined


@pytest.mark.parametrize("variant", SPECS)
@torch.no_grad()
def test_last_block_returns_x_alone(variant: str) -> None:
    x, lr, text = run_block(tiny_block(variant, last=True), **block_inputs())
    assert x.shape == (2, K, D)
    assert lr.shape == (2, 0, D)
    assert torch.equal(text, block_inputs()["text"])


# The injection


@pytest.mark.parametrize("grid", [(3, 5), (5, 3), (1, 15), (15, 1)])
@torch.no_grad()
def test_injection_is_a_convolution_on_the_token_grid(grid: tuple[int, int]) -> None:
    ff, s = tiny_block("dit4sr").ff, 1.2
    streams = block_inputs()
    out = ff(torch.cat([streams["x"], streams["lr"]], dim=1), 2, grid, s, lr_ends=False)

    h_x, h_l = (F.gelu(ff.net[0].proj(streams[n]), approximate="tanh") for n in ("x", "lr"))
    # Row-major: token number y·width + x is at (y, x).
    image = torch.stack([h_l[:, y * grid[1] : (y + 1) * grid[1]] for y in range(grid[0])], dim=1)
    conv = F.conv2d(image.movedim(-1, 1), ff.control_conv.weight, ff.control_conv.bias, padding=1, groups=4 * D)
    assert conv.shape == (2, 4 * D, *grid)
    injected = torch.cat([conv[:, :, y].movedim(1, -1) for y in range(grid[0])], dim=1)
    torch.testing.assert_close(out[:, :K], ff.net[2](h_x + s * injected), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(out[:, K:], ff.net[2](h_l), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("place", [(0, 0), (1, 2), (2, 4), (1, 0)])
@torch.no_grad()
def test_one_lr_token_reaches_its_neighbours_only(place: tuple[int, int]) -> None:
    ff, streams = tiny_block("variant_a").ff, block_inputs()
    y, x = place

    def run(lr: Tensor) -> Tensor:
        out = ff(torch.cat([streams["x"], lr], dim=1), 2, GRID, 1.0, lr_ends=True)
        return out.unflatten(1, GRID)

    changed = streams["lr"].clone()
    changed[:, y * GRID[1] + x] += 1
    reached = (run(changed) != run(streams["lr"])).any(-1)
    expected = torch.zeros(2, *GRID, dtype=torch.bool)
    expected[:, max(y - 1, 0) : y + 2, max(x - 1, 0) : x + 2] = True
    assert torch.equal(reached, expected)


@pytest.mark.parametrize("variant", ["variant_d", "variant_d_per_channel"])
@torch.no_grad()
def test_variant_d_injects_token_by_token(variant: str) -> None:
    ff, streams = tiny_block(variant).ff, block_inputs()
    h_x, h_l = (F.gelu(ff.net[0].proj(streams[n]), approximate="tanh") for n in ("x", "lr"))
    if variant == "variant_d":
        injected = h_l @ ff.control_linear.weight.T + ff.control_linear.bias
    else:
        injected = h_l * ff.control_scale + ff.control_shift
    out = ff(torch.cat([streams["x"], streams["lr"]], dim=1), 2, GRID, 0.7, lr_ends=True)
    torch.testing.assert_close(out, ff.net[2](h_x + 0.7 * injected), rtol=1e-5, atol=1e-5)


# The key source


@torch.no_grad()
def test_noise_keys_are_the_noise_streams_normalised_twice() -> None:
    attention = tiny_block("noise_keys").attn
    streams = block_inputs()
    x, lr, text = streams["x"], streams["lr"], streams["text"]

    def heads(t: Tensor) -> Tensor:
        return torch.stack(t.chunk(2, dim=-1), dim=1)

    def rms(t: Tensor, weight: Tensor) -> Tensor:
        return t / (t.square().mean(-1, keepdim=True) + 1e-6).sqrt() * weight

    a, w_q, w_k = attention, attention.norm_q.weight, attention.norm_k.weight
    k_x = rms(heads(a.to_k(x)), w_k)
    k = torch.cat([k_x, rms(k_x, w_k), rms(heads(a.add_k_proj(text)), a.norm_added_k.weight)], dim=2)
    v = torch.cat([heads(a.to_v(x)), heads(a.to_v_control(a.to_v(lr))), heads(a.add_v_proj(text))], dim=2)
    q_x, q_l = rms(heads(a.to_q(x)), w_q), rms(heads(a.to_q_control(a.to_q(lr))), w_q)
    o_x, o_l = (torch.softmax(q @ k.mT / 8**0.5, dim=-1) @ v for q in (q_x, q_l))
    o_x, o_l = (torch.cat(o.unbind(1), dim=-1) for o in (o_x, o_l))

    out, _ = attention(torch.cat([x, lr], dim=1), text, 2)
    torch.testing.assert_close(out[:, :K], a.to_out[0](o_x), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(out[:, K:], a.to_out_control(o_l + lr), rtol=1e-5, atol=1e-5)
    # A second normalisation is no repetition of the first: the weights act twice.
    assert not torch.allclose(rms(k_x, w_k), k_x, rtol=1e-2)


@torch.no_grad()
def test_noise_keys_ignore_the_key_map() -> None:
    inputs = tiny_inputs()
    for spec, ignored in ((DIT4SR, False), (replace(DIT4SR, key_source="noise"), True)):
        network = tiny_network(spec)
        before = inputs.call(network)
        randomise(network, 9, only=[n for n in network.control_parameter_names() if ".to_k_control." in n])
        assert torch.equal(inputs.call(network), before) == ignored


@torch.no_grad()
def test_without_qk_norm_the_key_sources_are_the_same() -> None:
    inputs = tiny_inputs()
    lr, noise = (
        inputs.call(tiny_network(replace(DIT4SR, key_source=source), qk_norm=None)) for source in ("lr", "noise")
    )
    assert torch.equal(lr, noise)

"""The networks against diffusers' own SD3 classes."""

import copy
from dataclasses import replace
from typing import Any

import pytest
import torch
from diffusers import SD3ControlNetModel, SD3Transformer2DModel
from tiny_sd3 import (
    DIT4SR,
    SPECS,
    randomise,
    relative_error,
    tiny_controlnet,
    tiny_fields,
    tiny_inputs,
    tiny_network,
    tiny_transformer,
)

from dit4sr.models import DiT4SRTransformer2DModel, SD3ControlNet


def sd3_velocity(transformer: SD3Transformer2DModel, **residuals: Any) -> torch.Tensor:
    inputs = tiny_inputs()
    return transformer(
        hidden_states=inputs.z,
        timestep=inputs.timestep,
        encoder_hidden_states=inputs.tokens,
        pooled_projections=inputs.pooled,
        return_dict=False,
        **residuals,
    )[0]


@pytest.mark.parametrize("layers", [1, 2, 3])
@pytest.mark.parametrize("dual", [(), (0,), (0, 2)])
@pytest.mark.parametrize("qk_norm", ["rms_norm", None])
@torch.no_grad()
def test_without_lr_stream_it_is_sd3(qk_norm: str | None, dual: tuple[int, ...], layers: int) -> None:
    fields: dict[str, Any] = {"qk_norm": qk_norm, "dual_attention_layers": dual, "num_layers": layers}
    expected = sd3_velocity(tiny_transformer(**fields))
    assert relative_error(tiny_inputs().call(tiny_network(**fields), lr=None), expected) < 1e-5


@pytest.mark.parametrize("variant", SPECS)
@torch.no_grad()
def test_without_lr_stream_every_variant_is_sd3(variant: str) -> None:
    expected = sd3_velocity(tiny_transformer())
    assert relative_error(tiny_inputs().call(tiny_network(SPECS[variant]), lr=None), expected) < 1e-5


@pytest.mark.parametrize(("height", "width"), [(2, 2), (2, 18), (18, 4), (10, 6)])
@torch.no_grad()
def test_any_latent_size_up_to_the_positional_table(height: int, width: int) -> None:
    inputs = tiny_inputs(height, width)
    (expected,) = tiny_transformer()(inputs.z, inputs.tokens, inputs.pooled, inputs.timestep, return_dict=False)
    assert relative_error(inputs.call(tiny_network(), lr=None), expected) < 1e-5
    assert inputs.call(tiny_network()).shape == inputs.z.shape


@pytest.mark.parametrize("network", [tiny_network, tiny_controlnet])
def test_impossible_latents_are_refused(network: Any) -> None:
    for height, width, hint in ((5, 6, "multiples of the patch"), (6, 20, "at most 18")):
        with pytest.raises(ValueError, match=hint):
            tiny_inputs(height, width).call(network())
    with pytest.raises(ValueError, match="the LR latent is"):
        tiny_inputs().call(network(), lr=tiny_inputs(6, 8).lr)


@torch.no_grad()
def test_return_dict() -> None:
    inputs = tiny_inputs()
    for network in (tiny_network(), tiny_controlnet()):
        wrapped = network(inputs.z, inputs.lr, inputs.timestep, inputs.tokens, inputs.pooled)
        assert torch.equal(wrapped.sample, inputs.call(network))


@pytest.mark.parametrize("layers", [2, 3, 4, 5])
@torch.no_grad()
def test_controlnet_starts_as_the_transformer(layers: int) -> None:
    fields: dict[str, Any] = {"num_layers": layers, "dual_attention_layers": (0, 1)}
    network = SD3ControlNet.from_sd3(tiny_transformer(**fields))
    assert torch.equal(tiny_inputs().call(network), sd3_velocity(tiny_transformer(**fields)))
    assert torch.equal(tiny_inputs().call(network, lr=None), sd3_velocity(tiny_transformer(**fields)))
    # Its blocks are copies of the transformer's first ones, not the same tensors.
    assert len(network.controlnet.transformer_blocks) == -(-layers // 2)
    own, base = network.controlnet.state_dict(), network.transformer.state_dict()
    copied = [n for n in own if not n.startswith(("controlnet_blocks.", "pos_embed_input."))]
    assert all(torch.equal(own[n], base[n]) for n in copied)
    assert all(own[n].data_ptr() != base[n].data_ptr() for n in copied)
    assert not any(own[n].any() for n in own if n not in copied)


@pytest.mark.parametrize("layers", [2, 3, 4, 5])
@torch.no_grad()
def test_controlnet_is_diffusers_wired_by_hand(layers: int) -> None:
    fields: dict[str, Any] = {"num_layers": layers, "dual_attention_layers": (0, 1)}
    network = tiny_controlnet(**fields)
    depth = -(-layers // 2)
    controlnet = SD3ControlNetModel(
        **tiny_fields(num_layers=depth, dual_attention_layers=tuple(i for i in (0, 1) if i < depth)),
        extra_conditioning_channels=0,
    ).eval()
    controlnet.load_state_dict(network.controlnet.state_dict())
    inputs = tiny_inputs()
    (residuals,) = controlnet(
        inputs.z,
        inputs.lr,
        encoder_hidden_states=inputs.tokens,
        pooled_projections=inputs.pooled,
        timestep=inputs.timestep,
        return_dict=False,
    )

    # The transformer block by block: residual i after blocks 2i and 2i+1, none after the last.
    base = tiny_transformer(**fields)
    x, c = base.pos_embed(inputs.z), base.context_embedder(inputs.tokens)
    temb = base.time_text_embed(inputs.timestep, inputs.pooled)
    for i, block in enumerate(base.transformer_blocks):
        c, x = block(hidden_states=x, encoder_hidden_states=c, temb=temb)
        if i < layers - 1:
            x = x + residuals[i // 2]
    x = base.proj_out(base.norm_out(x, temb)).reshape(2, 3, 5, 2, 2, 4)
    expected = torch.einsum("nhwpqc->nchpwq", x).reshape(inputs.z.shape)
    assert relative_error(inputs.call(network), expected) < 1e-5
    assert relative_error(inputs.call(network, lr=None), expected) > 1e-2


@pytest.mark.parametrize("build", [lambda t: DiT4SRTransformer2DModel.from_sd3(t, DIT4SR), SD3ControlNet.from_sd3])
def test_from_sd3_leaves_the_originals_config_alone(build: Any) -> None:
    transformer = tiny_transformer(num_layers=4)
    before = copy.deepcopy(dict(transformer.config))
    network = build(transformer)
    assert dict(transformer.config) == before
    assert network.config.num_layers == 4


def test_from_sd3_names_a_missing_key() -> None:
    transformer = tiny_transformer()
    del transformer.transformer_blocks[1].attn.to_k.weight
    transformer.transformer_blocks[1].attn.to_k.register_parameter("weight", None)
    for build in (
        lambda: DiT4SRTransformer2DModel.from_sd3(transformer, DIT4SR),
        lambda: SD3ControlNet.from_sd3(transformer),
    ):
        with pytest.raises(ValueError, match=r"transformer_blocks\.1\.attn\.to_k\.weight"):
            build()


def test_from_sd3_names_an_unexpected_key() -> None:
    transformer = tiny_transformer()
    transformer.transformer_blocks[0].attn.surplus = torch.nn.Linear(2, 2)
    for build in (
        lambda: DiT4SRTransformer2DModel.from_sd3(transformer, DIT4SR),
        lambda: SD3ControlNet.from_sd3(transformer),
    ):
        with pytest.raises(ValueError, match=r"transformer_blocks\.0\.attn\.surplus\.weight"):
            build()


@pytest.mark.parametrize("control_init", ["zero", "identity"])
def test_control_weights_start_after_the_base_is_in(control_init: Any) -> None:
    transformer = tiny_transformer(seed=3)
    network = DiT4SRTransformer2DModel.from_sd3(transformer, DIT4SR, control_init=control_init)
    start = torch.eye(16) if control_init == "identity" else torch.zeros(16, 16)
    for i, block in enumerate(network.transformer_blocks):
        for attention in filter(None, (block.attn, block.attn2)):
            w_o = attention.to_out[0]
            assert w_o.weight.abs().sum() > 0 and w_o.bias.abs().sum() > 0
            assert torch.equal(attention.to_out_control.weight, w_o.weight)
            assert torch.equal(attention.to_out_control.bias, w_o.bias)
            assert attention.to_out_control.weight.data_ptr() != w_o.weight.data_ptr()
            for name in "to_q_control", "to_k_control", "to_v_control":
                assert torch.equal(getattr(attention, name).weight, start)
                assert not getattr(attention, name).bias.any()
        assert not block.ff.control_conv.weight.any() and not block.ff.control_conv.bias.any()
        assert torch.equal(block.attn.to_q.weight, transformer.transformer_blocks[i].attn.to_q.weight)


def test_unknown_start_of_the_control_weights_is_refused() -> None:
    with pytest.raises(ValueError, match="choose zero .* or identity"):
        DiT4SRTransformer2DModel.from_sd3(tiny_transformer(), DIT4SR, control_init="random")


@pytest.mark.parametrize("build", [lambda t: DiT4SRTransformer2DModel.from_sd3(t, DIT4SR), SD3ControlNet.from_sd3])
def test_new_weights_take_the_bases_type(build: Any) -> None:
    network = build(tiny_transformer().to(torch.bfloat16))
    assert {p.dtype for p in network.parameters()} == {torch.bfloat16}
    inputs = tiny_inputs()
    with torch.no_grad():
        velocity = inputs.call(network, **{f: getattr(inputs, f).bfloat16() for f in ("z", "lr", "tokens", "pooled")})
    assert velocity.dtype == torch.bfloat16 and velocity.isfinite().all()


@pytest.mark.parametrize("spec", [DIT4SR, SPECS["variant_d"], replace(DIT4SR, key_source="noise")])
@torch.no_grad()
def test_save_and_load_dit4sr(spec: Any, tmp_path: Any) -> None:
    network = tiny_network(spec)
    network.save_pretrained(tmp_path)
    assert not list(tmp_path.glob("*.bin")) and list(tmp_path.glob("*.safetensors"))
    loaded = DiT4SRTransformer2DModel.from_pretrained(tmp_path)
    assert loaded.spec == spec
    assert loaded.lr_injection_scale == 1.0
    assert torch.equal(tiny_inputs().call(loaded), tiny_inputs().call(network))


@torch.no_grad()
def test_save_and_load_controlnet(tmp_path: Any) -> None:
    network = tiny_controlnet()
    network.save_pretrained(tmp_path)
    loaded = SD3ControlNet.from_pretrained(tmp_path)
    assert torch.equal(tiny_inputs().call(loaded), tiny_inputs().call(network))


@pytest.mark.parametrize("build", [tiny_network, tiny_controlnet])
def test_gradient_checkpointing_changes_no_gradient(build: Any) -> None:
    def gradients(checkpointing: bool) -> dict[str, torch.Tensor]:
        network = build().train()
        if checkpointing:
            network.enable_gradient_checkpointing()
            assert any(getattr(m, "gradient_checkpointing", False) for m in network.modules())
        tiny_inputs().call(network).square().sum().backward()
        return {n: p.grad for n, p in network.named_parameters() if p.grad is not None}

    plain, checkpointed = gradients(False), gradients(True)
    assert plain.keys() == checkpointed.keys()
    for name, gradient in plain.items():
        torch.testing.assert_close(checkpointed[name], gradient, msg=name)


def test_base_is_taken_over_not_copied() -> None:
    transformer = tiny_transformer()
    network = DiT4SRTransformer2DModel.from_sd3(transformer, DIT4SR)
    assert network.proj_out.weight.data_ptr() == transformer.proj_out.weight.data_ptr()
    randomise(transformer, seed=11)
    assert torch.equal(network.context_embedder.weight, transformer.context_embedder.weight)

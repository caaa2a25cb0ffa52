"""The exact set of control parameters of every variant, and of what it can never reach."""

from collections.abc import Iterator

import pytest
from tiny_sd3 import SPECS, tiny_controlnet, tiny_network, tiny_transformer

LAYERS, DUAL = 3, (0,)

INJECTION = {
    "dit4sr": ("ff.control_conv.weight", "ff.control_conv.bias"),
    "variant_a": ("ff.control_conv.weight", "ff.control_conv.bias"),
    "variant_b": ("ff.control_conv.weight", "ff.control_conv.bias"),
    "variant_c": (),
    "variant_d": ("ff.control_linear.weight", "ff.control_linear.bias"),
    "variant_d_per_channel": ("ff.control_scale", "ff.control_shift"),
    "noise_keys": ("ff.control_conv.weight", "ff.control_conv.bias"),
}


def expected(variant: str) -> Iterator[str]:
    for block in range(LAYERS):
        for attention in ("attn", "attn2") if block in DUAL else ("attn",):
            for p in "q", "k", "v", "out":
                for leaf in "weight", "bias":
                    yield f"transformer_blocks.{block}.{attention}.to_{p}_control.{leaf}"
        for name in INJECTION[variant]:
            yield f"transformer_blocks.{block}.{name}"


@pytest.mark.parametrize("variant", SPECS)
def test_control_parameters(variant: str) -> None:
    network = tiny_network(SPECS[variant], num_layers=LAYERS, dual_attention_layers=DUAL)
    assert sorted(network.control_parameter_names()) == sorted(expected(variant))
    # Everything else is the base's, under the base's names.
    base = tiny_transformer(num_layers=LAYERS, dual_attention_layers=DUAL).state_dict()
    assert sorted(set(network.state_dict()) - set(expected(variant))) == sorted(base)


def with_leaves(prefix: str, *modules: str) -> set[str]:
    return {f"{prefix}.{m}.{leaf}" for m in modules for leaf in ("weight", "bias")}


TEXT_ENDS = with_leaves("transformer_blocks.2.attn", "add_q_proj") | {"transformer_blocks.2.attn.norm_added_q.weight"}


@pytest.mark.parametrize("variant", sorted(set(SPECS) - {"variant_c", "noise_keys"}))
def test_unreachable_parameters(variant: str) -> None:
    assert set(tiny_network(SPECS[variant]).unreachable_parameter_names()) == TEXT_ENDS


def test_unreachable_parameters_of_variant_c() -> None:
    last = with_leaves("transformer_blocks.2.attn", "to_q_control", "to_out_control")
    assert set(tiny_network(SPECS["variant_c"]).unreachable_parameter_names()) == TEXT_ENDS | last


def test_unreachable_parameters_of_variant_c_with_dual_attention_in_the_last_block() -> None:
    network = tiny_network(SPECS["variant_c"], dual_attention_layers=(0, 2))
    last = with_leaves("transformer_blocks.2.attn", "to_q_control", "to_out_control")
    last |= with_leaves("transformer_blocks.2.attn2", "to_q_control", "to_out_control")
    assert set(network.unreachable_parameter_names()) == TEXT_ENDS | last


def test_unreachable_parameters_with_noise_keys() -> None:
    keys = {n for n in expected("noise_keys") if ".to_k_control." in n}
    assert set(tiny_network(SPECS["noise_keys"]).unreachable_parameter_names()) == TEXT_ENDS | keys


def test_noise_keys_without_qk_norm_use_the_key_map() -> None:
    """Without qk-norm the two key sources are the same, so nothing of P_k is out of reach."""
    network = tiny_network(SPECS["noise_keys"], qk_norm=None)
    assert set(network.unreachable_parameter_names()) == with_leaves("transformer_blocks.2.attn", "add_q_proj")


def test_controlnet_parameters() -> None:
    network = tiny_controlnet(num_layers=4)
    names = set(network.control_parameter_names())
    assert names == {n for n in dict(network.named_parameters()) if n.startswith("controlnet.")}
    assert {n.split(".")[2] for n in names if "transformer_blocks" in n} == {"0", "1"}
    assert with_leaves("controlnet.controlnet_blocks", "0", "1") <= names

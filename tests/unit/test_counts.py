"""Parameter counts at SD3.5-Medium's size, on the meta device: in millions, to the second decimal."""

import functools
from dataclasses import replace
from typing import Any

import pytest
import torch
from diffusers import SD3Transformer2DModel
from diffusers.models.attention_processor import Attention
from tiny_sd3 import DIT4SR, SPECS
from torch import nn

from dit4sr.models import DiT4SRTransformer2DModel, LRStreamSpec, SD3ControlNet

SD35_MEDIUM: dict[str, Any] = {
    "sample_size": 128,
    "patch_size": 2,
    "in_channels": 16,
    "out_channels": 16,
    "num_layers": 24,
    "attention_head_dim": 64,
    "num_attention_heads": 24,
    "joint_attention_dim": 4096,
    "caption_projection_dim": 1536,
    "pooled_projection_dim": 2048,
    "pos_embed_max_size": 384,
    "dual_attention_layers": tuple(range(13)),
    "qk_norm": "rms_norm",
}


def millions(module: nn.Module, names: list[str] | None = None) -> float:
    """Parameters of ``module`` (those named, if names are given) in millions, rounded as published."""
    counts = {n: p.numel() for n, p in module.named_parameters()}
    return round(sum(counts[n] for n in (counts if names is None else names)) / 1e6, 2)


def millions_exact(module: nn.Module) -> float:
    return sum(p.numel() for p in module.parameters()) / 1e6


@functools.cache
def base() -> SD3Transformer2DModel:
    with torch.device("meta"):
        return SD3Transformer2DModel(**SD35_MEDIUM)


@functools.cache
def dit4sr(spec: LRStreamSpec) -> DiT4SRTransformer2DModel:
    with torch.device("meta"):
        return DiT4SRTransformer2DModel(**SD35_MEDIUM, **spec.as_config())


def test_base() -> None:
    assert millions(base()) == 2243.17


@pytest.mark.parametrize(
    ("variant", "control", "total"),
    [
        ("dit4sr", 350.88, 2594.05),
        ("variant_a", 350.88, 2594.05),
        ("variant_b", 350.88, 2594.05),
        ("variant_c", 349.40, 2592.57),
        ("variant_d", 1255.52, 3498.69),
        ("variant_d_per_channel", 349.70, 2592.87),
    ],
)
def test_variants(variant: str, control: float, total: float) -> None:
    network = dit4sr(SPECS[variant])
    assert millions(network, network.control_parameter_names()) == control
    assert millions(network) == total
    assert sorted(set(dict(network.named_parameters())) - set(network.control_parameter_names())) == sorted(
        dict(base().named_parameters())
    )


def test_reachable_control_weights_of_variant_c() -> None:
    network = dit4sr(SPECS["variant_c"])
    reachable = set(network.control_parameter_names()) - set(network.unreachable_parameter_names())
    assert millions(network, sorted(reachable)) == 344.68


@pytest.mark.parametrize("variant", ["dit4sr", "variant_a", "variant_b", "variant_d", "variant_d_per_channel"])
def test_all_control_weights_of_the_others_are_reachable(variant: str) -> None:
    network = dit4sr(SPECS[variant])
    assert not set(network.control_parameter_names()) & set(network.unreachable_parameter_names())


def test_noise_keys_leave_every_key_map_unreachable() -> None:
    network = dit4sr(replace(DIT4SR, key_source="noise"))
    names = set(network.control_parameter_names()) & set(network.unreachable_parameter_names())
    assert names == {n for n in network.control_parameter_names() if ".to_k_control." in n}
    assert len(names) == 2 * (24 + 13)


def test_published_total_counts_dead_text_projections() -> None:
    """2716.8M (supplement, table 2) is ours plus projections in ``attn2`` that no forward pass uses."""

    def attention(**text: Any) -> nn.Module:
        with torch.device("meta"):
            return Attention(query_dim=1536, heads=24, dim_head=64, out_dim=1536, bias=True, qk_norm="rms_norm", **text)

    with_text = attention(added_kv_proj_dim=1536, context_pre_only=False)
    dead = 13 * (millions_exact(with_text) - millions_exact(attention()))
    assert round(dead, 2) == 122.76
    assert round(millions_exact(dit4sr(DIT4SR)) + dead, 1) == 2716.8


def test_controlnet() -> None:
    with torch.device("meta"):
        network = SD3ControlNet(**SD35_MEDIUM)
    assert len(network.controlnet.transformer_blocks) == 12
    assert all(b.use_dual_attention for b in network.controlnet.transformer_blocks)
    assert network.controlnet.pos_embed_input.proj.weight.shape == (1536, 16, 2, 2)  # no mask channel
    assert millions(network, network.control_parameter_names()) == 1261.17
    assert millions(network) == 3504.34


def test_positional_table_is_a_persistent_buffer() -> None:
    network = dit4sr(DIT4SR)
    table = dict(network.named_buffers())["pos_embed.pos_embed"]
    assert table.shape == (1, 384 * 384, 1536)
    assert round(table.numel() / 1e6) == 226
    assert "pos_embed.pos_embed" in network.state_dict()

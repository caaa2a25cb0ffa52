"""The whole network against a literal re-implementation of its equations."""

import dataclasses
from dataclasses import replace

import pytest
import torch
from parity import reference
from tiny_sd3 import DIT4SR, SPECS, relative_error, tiny_fields, tiny_inputs, tiny_network

from dit4sr.models import LRStreamSpec


def check(spec: LRStreamSpec, scale: float, *, batch: int = 2, **fields: object) -> None:
    network = tiny_network(spec, **fields)
    network.lr_injection_scale = scale
    inputs = tiny_inputs(batch=batch)
    with torch.no_grad():
        actual = inputs.call(network)
        expected = reference.velocity(
            network.state_dict(),
            tiny_fields(**fields),
            dataclasses.asdict(spec),
            inputs.z,
            inputs.lr,
            inputs.timestep,
            inputs.tokens,
            inputs.pooled,
            scale,
        )
    assert actual.shape == inputs.z.shape
    assert relative_error(actual, expected) < 1e-5


@pytest.mark.parametrize("qk_norm", ["rms_norm", None])
@pytest.mark.parametrize("dual", [(), (0, 1), (0, 1, 2)])
@pytest.mark.parametrize("scale", [1.0, 1.2])
@pytest.mark.parametrize("key_source", ["lr", "noise"])
def test_dit4sr(key_source: str, scale: float, dual: tuple[int, ...], qk_norm: str | None) -> None:
    spec = replace(DIT4SR, key_source=key_source)
    check(spec, scale, dual_attention_layers=dual, qk_norm=qk_norm)


@pytest.mark.parametrize("qk_norm", ["rms_norm", None])
@pytest.mark.parametrize("dual", [(), (0, 2)])
@pytest.mark.parametrize("variant", sorted(set(SPECS) - {"dit4sr", "noise_keys"}))
def test_variants(variant: str, dual: tuple[int, ...], qk_norm: str | None) -> None:
    check(SPECS[variant], 1.2, dual_attention_layers=dual, qk_norm=qk_norm)


@pytest.mark.parametrize("key_source", ["lr", "noise"])
@pytest.mark.parametrize("injection", ["conv", "linear", "per_channel"])
def test_separate_attention_with_every_injection(injection: str, key_source: str) -> None:
    check(LRStreamSpec(attention="separate", residual=False, injection=injection, key_source=key_source), 1.2)


@pytest.mark.parametrize("layers", [1, 2, 4])
def test_other_depths(layers: int) -> None:
    check(DIT4SR, 1.2, num_layers=layers)


def test_reference_tells_the_key_sources_apart() -> None:
    """A guard of the tests above: were the two key sources alike, agreeing with both would prove nothing."""
    inputs = tiny_inputs()
    lr, noise = (inputs.call(tiny_network(replace(DIT4SR, key_source=k))) for k in ("lr", "noise"))
    assert relative_error(lr, noise) > 1e-2

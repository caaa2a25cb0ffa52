"""LRStreamSpec: four facts, no defaults, and no specification under which LR reaches nothing."""

import dataclasses

import pytest
from tiny_sd3 import DIT4SR, tiny_fields

from dit4sr.models import DiT4SRTransformer2DModel, LRStreamSpec


def test_every_field_must_be_stated() -> None:
    full = dataclasses.asdict(DIT4SR)
    for name in full:
        with pytest.raises(TypeError, match=name):
            LRStreamSpec(**{k: v for k, v in full.items() if k != name})


def test_fields_may_be_given_in_their_order() -> None:
    spec = LRStreamSpec("separate", False, "linear", "noise")
    assert dataclasses.astuple(spec) == ("separate", False, "linear", "noise")


@pytest.mark.parametrize(
    ("field", "value", "hint"),
    [
        ("attention", "cross", "joint, separate"),
        ("injection", "conv5", "conv, linear, per_channel, none"),
        ("key_source", "both", "lr, noise"),
        ("residual", "yes", "true or false"),
        ("residual", 1, "true or false"),
    ],
)
def test_unknown_values_are_refused_with_the_choices(field: str, value: object, hint: str) -> None:
    with pytest.raises(ValueError, match=f"{field}={value!r}.*{hint}"):
        dataclasses.replace(DIT4SR, **{field: value})


def test_lr_that_reaches_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="could never reach"):
        dataclasses.replace(DIT4SR, attention="separate", injection="none")


def test_injection_null_means_none() -> None:
    assert dataclasses.replace(DIT4SR, injection=None).injection == "none"


def test_specification_is_data() -> None:
    assert dataclasses.replace(DIT4SR) == DIT4SR
    assert hash(dataclasses.replace(DIT4SR)) == hash(DIT4SR)
    with pytest.raises(dataclasses.FrozenInstanceError):
        DIT4SR.residual = False  # type: ignore[misc]


def test_network_fields_are_the_specification() -> None:
    spec = dataclasses.replace(DIT4SR, attention="separate", injection="linear")
    assert spec.as_config() == {
        "lr_attention": "separate",
        "lr_residual": True,
        "lr_injection": "linear",
        "lr_key_source": "lr",
    }
    network = DiT4SRTransformer2DModel(**tiny_fields(), **spec.as_config())
    assert network.spec == spec
    assert {k: network.config[k] for k in spec.as_config()} == spec.as_config()

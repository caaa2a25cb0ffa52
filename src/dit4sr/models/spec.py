"""What distinguishes DiT4SR from its ablation variants, as data."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any, Literal, get_args

Attention = Literal["joint", "separate"]
Injection = Literal["conv", "linear", "per_channel", "none"]
KeySource = Literal["lr", "noise"]

SPEC_PREFIX = "lr_"
"""A specification's fields carry this prefix in a network's config (``lr_attention``, …)."""


@dataclass(frozen=True)
class LRStreamSpec:
    """How the LR stream takes part in every block (DiT4SR, ICCV 2025, sections 3.2–3.4).

    There are no defaults: a variant states every field, so the difference between two
    variants is the difference between two specifications.

    Args:
        attention: ``joint`` is one softmax over [X; L; C]; ``separate`` leaves X and C as in
            SD3 and lets L attend to itself (variant A).
        residual: whether P_o sees O_L + L̂ (the LR Residual) or O_L alone (variant B).
        injection: what carries h_L to h_X between the two linear maps of the MLP: ``conv``,
            a depth-wise 3×3 convolution on the token grid; ``linear``, a dense 4D→4D layer
            (variant D); ``per_channel``, a scale and a shift a channel; ``none`` (variant C).
        key_source: ``lr`` is K_L = norm_k(P_k W_k L̂); ``noise`` is
            K_L = norm_k(norm_k(K_X)), with which the first released weights were trained.

    Raises:
        ValueError: for an unknown value, or where LR could never reach X.
    """

    attention: Attention
    residual: bool
    injection: Injection
    key_source: KeySource

    def __post_init__(self) -> None:
        if self.injection is None:
            object.__setattr__(self, "injection", "none")
        for name, kind in (("attention", Attention), ("injection", Injection), ("key_source", KeySource)):
            value, options = getattr(self, name), get_args(kind)
            if value not in options:
                raise ValueError(f"LRStreamSpec.{name}={value!r}: choose one of {', '.join(options)}")
        if not isinstance(self.residual, bool):
            raise ValueError(f"LRStreamSpec.residual={self.residual!r}: choose true or false")
        if self.attention == "separate" and self.injection == "none":
            raise ValueError(
                "separate attention without an injection: the LR stream could never reach the noise "
                "stream. Choose attention='joint', or an injection (conv, linear, per_channel)"
            )

    def as_config(self) -> dict[str, Any]:
        """The fields under the names that a network's config gives them (``lr_attention``, …)."""
        return {SPEC_PREFIX + f.name: getattr(self, f.name) for f in fields(self)}

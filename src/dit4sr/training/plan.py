"""What a run would be: parameters, memory and steps, counted on the meta device without weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from dit4sr.models.base import resolve_backbone
from dit4sr.models.build import build_on_meta, count_parameters
from dit4sr.training.checks import check_values

GIB = 2**30


@dataclass(frozen=True)
class MemoryPlan:
    """Bytes that a process holds for the network throughout training (activations not counted).

    Attributes:
        frozen: frozen weights and the positional table.
        trainable: the trainable weights, in float32.
        gradients: of the trainable weights.
        optimiser: AdamW's two moments.
        ema: the averaged weights.
    """

    frozen: int
    trainable: int
    gradients: int
    optimiser: int
    ema: int

    @property
    def total(self) -> int:
        """Sum of all parts."""
        return self.frozen + self.trainable + self.gradients + self.optimiser + self.ema


def plan_memory(network: Any, frozen_bytes: int = 4, optimiser_bytes: int = 8) -> MemoryPlan:
    """Memory of a network as it is trained here: what trains in float32.

    Args:
        network: on any device.
        frozen_bytes: of a frozen weight: 2 for a base kept in half precision.
        optimiser_bytes: of the optimiser's state, a trained weight.
    """
    trainable = sum(p.numel() for p in network.parameters() if p.requires_grad)
    frozen = sum(p.numel() for p in network.parameters() if not p.requires_grad)
    buffers = sum(b.numel() for b in network.buffers())
    return MemoryPlan(
        frozen=frozen_bytes * (frozen + buffers),
        trainable=4 * trainable,
        gradients=4 * trainable,
        optimiser=optimiser_bytes * trainable,
        ema=4 * trainable,
    )


def print_plan(config: Mapping[str, Any]) -> None:
    """Print a run's parameters, memory and steps.

    Args:
        config: configs/train.yaml, composed and resolved.

    Raises:
        UserError: for a value that means nothing.
    """
    from dit4sr.training.memory import held, micro_batch, predict

    check_values(config)

    # The fields are the base's own where it is on this machine; nothing is downloaded for a plan.
    training, backbone = config["training"], resolve_backbone(config["backbone"], download=False)
    network = build_on_meta(config["model"], backbone)
    samples_at_once = micro_batch(config)
    half = "16" in str(config["trainer"]["precision"])
    prediction = predict(network, backbone, training, samples=samples_at_once, half=half, **held(config["trainer"]))
    count, memory = count_parameters(network), prediction.plan
    samples = config["trainer"]["max_steps"] * config["data"]["batch_size"]
    latent = f"{backbone['crop']}×{backbone['crop']} px crops"
    rows = [
        ("model", f"{config['model']['name']} on {backbone['name']}"),
        ("parameters", f"{count.total / 1e6:.2f} M"),
        ("  of them control", f"{count.control / 1e6:.2f} M"),
        ("  of them trained", f"{count.trainable / 1e6:.2f} M"),
        ("  never reached, frozen", f"{count.unreachable / 1e6:.2f} M"),
        ("memory of weights and optimiser", f"{memory.total / GIB:.2f} GiB, before activations"),
        ("  frozen weights, buffers", f"{memory.frozen / GIB:.2f} GiB"),
        ("  trained weights", f"{memory.trainable / GIB:.2f} GiB"),
        ("  gradients", f"{memory.gradients / GIB:.2f} GiB"),
        ("  optimiser's state", f"{memory.optimiser / GIB:.2f} GiB"),
        ("  averaged weights", f"{memory.ema / GIB:.2f} GiB"),
        *([("copies of weights for computing", f"{prediction.copies / GIB:.2f} GiB")] if prediction.copies else []),
        ("activations, estimated", f"{prediction.activations / GIB:.2f} GiB for {samples_at_once} crops at once"),
        ("steps", f"{config['trainer']['max_steps']:,} of {config['data']['batch_size']} {latent}"),
        ("samples", f"{samples:,}"),
        ("optimiser", f"{training['optimizer']}, {training['schedule']} rate {training['learning_rate']:g}, "
                      f"betas {training['betas']}, decay {training['weight_decay']:g}, "
                      f"clip {config['trainer']['gradient_clip_val']:g}"),
        ("loss", f"{training['loss']}, shift {training['shift']:g}, prompt drop {training['prompt_drop']:g}"),
        ("precision", training["precision"]),
        ("degradation", config["degradation"]["name"]),
    ]  # fmt: skip
    width = max(len(name) for name, _ in rows)
    for name, value in rows:
        print(f"{name:<{width}}  {value}")

"""A training's peak memory: predicted from the network's numbers, measured after a step, advice where it is short."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import lightning
import torch
from lightning.pytorch.callbacks import Callback

from dit4sr.models.flops import scale_of
from dit4sr.training.plan import GIB, MemoryPlan, plan_memory

ATTENTION, MLP = 11, 19
"""Bytes of activations a token and channel that a 16-bit layer keeps for its backward pass, without the attention's
matrix, which a fused kernel does not keep: 11 of attention, 19 of the
MLP, 4 of the norms (arXiv 2205.05198, section 4.1: sbh·34)."""

NORMS = 4

FROZEN_BASE, ALL_TRAINS = 1.25, 2.0
"""How much more than that these networks keep: control maps, norms of queries and keys, modulations, and where all
weights train the inputs of all of them. Measured by autograd's saved tensors on the CPU, small: 1.21 and 2.01 times in
bfloat16, 1.81 (nano: 1.85) in float32."""


@dataclass(frozen=True)
class Prediction:
    """Bytes of a device at the peak of a step.

    Attributes:
        plan: what is there throughout.
        activations: of one micro-batch.
        others: weights of the autoencoder and of the text encoders that stay.
        copies: of weights for computing: the 16-bit ones that autocast makes of what trains; where the network is
            sharded, the whole weights and gradients of the blocks that compute.
    """

    plan: MemoryPlan
    activations: int
    others: int
    copies: int = 0

    @property
    def total(self) -> int:
        """Sum of all parts."""
        return self.plan.total + self.activations + self.others + self.copies


def activation_bytes(
    transformer: Mapping[str, Any],
    *,
    latent_side: int,
    text_tokens: int,
    samples: int,
    checkpointing: bool,
    width: int,
    frozen_base: bool = True,
) -> int:
    """Bytes that the transformer keeps for the backward pass.

    Without checkpointing every block keeps 34 bytes a token and channel, and 13 more on the image tokens where it has
    dual attention, times :data:`FROZEN_BASE` or :data:`ALL_TRAINS`; with it each keeps its input, and one block at a
    time the rest.

    Args:
        transformer: the fields of SD3's config.
        latent_side: of the square latent.
        text_tokens: M.
        samples: of a micro-batch.
        checkpointing: whether activations are computed again.
        width: bytes of a number: 2, or 4 in full precision.
        frozen_base: whether the control weights alone train.
    """
    image = 2 * (latent_side // transformer["patch_size"]) ** 2  # X and L
    D = transformer["num_attention_heads"] * transformer["attention_head_dim"]
    more = FROZEN_BASE if frozen_base else ALL_TRAINS
    block = int(more * (ATTENTION + MLP + NORMS) * (image + text_tokens) * D)
    dual = int(more * (ATTENTION + NORMS // 2) * image * D)
    blocks, with_dual = transformer["num_layers"], len(transformer.get("dual_attention_layers") or ())
    kept = blocks * block + with_dual * dual
    if checkpointing:
        kept = blocks * 2 * (image + text_tokens) * D + block + (dual if with_dual else 0)
    return samples * kept * width // 2


def micro_batch(config: Mapping[str, Any], world_size: int | None = None) -> int:
    """Samples that a device computes at once.

    Args:
        config: configs/train.yaml, composed.
        world_size: number of devices in all; None counts what ``trainer`` asks for.
    """
    from dit4sr.training.distributed import count_devices

    trainer = config["trainer"]
    devices = world_size or count_devices(trainer["accelerator"], trainer["devices"]) * trainer["num_nodes"]
    share = max(1, config["data"]["batch_size"] // (devices * trainer["accumulate_grad_batches"]))
    return min(share, trainer.get("micro_batch") or share)


def predict(
    network: Any,
    backbone: Mapping[str, Any],
    training: Mapping[str, Any],
    *,
    samples: int,
    half: bool,
    others: int = 0,
    shards: int = 1,
    frozen: str = "sharded",
    average: bool = True,
) -> Prediction:
    """The peak of a training step on one device.

    Args:
        network: on any device.
        backbone: configs/backbone.
        training: configs/training.
        samples: of a micro-batch.
        half: whether a frozen base is kept, and activations are computed, in 16 bits.
        others: bytes of what else stays in memory.
        shards: processes over which the network is sharded; 1 for DDP.
        frozen: see :func:`dit4sr.training.sharding.shard_network`.
        average: whether the device holds the averaged weights.
    """
    activations = activation_bytes(
        backbone["transformer"],
        latent_side=backbone["crop"] // scale_of(backbone),
        text_tokens=backbone["text_encoder"]["tokens"],
        samples=samples,
        checkpointing=training["gradient_checkpointing"],
        width=2 if half else 4,
        frozen_base=bool(backbone["pretrained"]),
    )
    frozen_bytes = 2 if half and backbone["pretrained"] else 4
    plan = plan_memory(network, frozen_bytes, optimiser_bytes(training["optimizer"]))
    plan = plan if average else replace(plan, ema=0)
    if shards == 1:
        return Prediction(plan, activations, others, plan.trainable // 2 if half else 0)
    buffers = frozen_bytes * sum(b.numel() for b in network.buffers())
    gathered = gathered_bytes(network, frozen_bytes, 2 if half else 4, frozen)
    return Prediction(
        shared(plan, shards, plan.frozen if frozen == "whole" else buffers), activations, others, gathered
    )


def held(trainer: Mapping[str, Any], world_size: int | None = None) -> dict[str, Any]:
    """The arguments of :func:`predict` that configs/trainer decides.

    Args:
        trainer: configs/trainer.
        world_size: number of devices in all; None counts what ``trainer`` asks for.
    """
    from dit4sr.training.distributed import count_devices

    devices = world_size or count_devices(trainer["accelerator"], trainer["devices"]) * trainer["num_nodes"]
    return {
        "shards": devices if trainer["strategy"] == "fsdp" else 1,
        "frozen": trainer.get("frozen", "sharded"),
        "average": trainer.get("average_on", "device") != "cpu",
    }


def shared(plan: MemoryPlan, shards: int, whole: int) -> MemoryPlan:
    """What each of ``shards`` processes keeps of a plan; ``whole`` bytes of what is frozen stay with each."""
    parts = {name: -(-value // shards) for name, value in asdict(plan).items()}
    return MemoryPlan(**{**parts, "frozen": whole + -(-(plan.frozen - whole) // shards)})


def gathered_bytes(network: Any, frozen_bytes: int, computed_bytes: int, frozen: str = "sharded") -> int:
    """What is whole at a time in sharded training: the block that computes, the next one, and the gradients of one.

    Args:
        network: on any device.
        frozen_bytes: of a frozen weight.
        computed_bytes: of a trained weight where it computes: 2 under bf16-mixed.
        frozen: ``whole`` where frozen weights are never gathered.
    """
    from dit4sr.training.sharding import blocks_of  # which imports this module

    sizes = []
    for block in blocks_of(network):
        trained = sum(p.numel() for p in block.parameters() if p.requires_grad)
        kept = sum(p.numel() for p in block.parameters() if not p.requires_grad)
        sizes.append((trained * computed_bytes + (0 if frozen == "whole" else kept * frozen_bytes), trained))
    weights, trained = max(sizes, default=(0, 0))
    return 2 * weights + computed_bytes * trained


def optimiser_bytes(optimizer: str) -> int:
    """Bytes a trained weight of an optimiser's state: two float32 moments, or two bytes. Muon's one is rounded up."""
    return 2 if optimizer == "adamw8bit" else 8


def weights_of(part: Any) -> int:
    """Bytes of a module's parameters; 0 of what is none, or is not loaded."""
    return sum(p.numel() * p.element_size() for p in part.parameters()) if isinstance(part, torch.nn.Module) else 0


class MemoryReport(Callback):
    """After the second step, when the optimiser has its state: the measured peak beside the predicted one.

    Args:
        prediction: of a device.
    """

    def __init__(self, prediction: Prediction) -> None:
        self.prediction, self._left = prediction, 2

    def on_train_batch_end(self, trainer: lightning.Trainer, module: lightning.LightningModule, *args: Any) -> None:
        self._left -= 1
        if self._left == 0 and module.device.type == "cuda" and trainer.is_global_zero:
            measured = torch.cuda.max_memory_allocated(module.device)
            print(
                f"peak memory of a step: {measured / GIB:.1f} GiB measured, {self.prediction.total / GIB:.1f} GiB "
                "predicted",
                file=sys.stderr,
            )


def advice() -> str:
    """What to do where the device's memory is too small."""
    return (
        "the device's memory is too small for a step: choose trainer/memory=16gb, 24gb, 40gb or 80gb by its size, "
        "trainer=fsdp on several devices, or a smaller trainer.micro_batch (the batch, and so the result, stays the "
        "same); plan=true says what is needed"
    )

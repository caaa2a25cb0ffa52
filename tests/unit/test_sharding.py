"""Fully sharded training: what a process keeps and what it sends, against the formulas, and what is refused."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from tiny_checkpoint import compose_verb
from tiny_sd3 import tiny_transformer
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor import DTensor
from torch.utils._python_dispatch import TorchDispatchMode

from dit4sr.errors import UserError
from dit4sr.models.dit4sr import DiT4SRTransformer2DModel
from dit4sr.models.spec import LRStreamSpec
from dit4sr.training.memory import gathered_bytes, shared
from dit4sr.training.plan import plan_memory
from dit4sr.training.sharding import blocks_of, check_sharded, own, shard_network

RANKS = 8


@pytest.fixture
def mesh() -> Iterator[DeviceMesh]:
    """Eight processes of which this one is the first, and the others only seem to be there."""
    from torch.testing._internal.distributed.fake_pg import FakeStore

    torch.distributed.init_process_group("fake", rank=0, world_size=RANKS, store=FakeStore())
    yield init_device_mesh("cpu", (RANKS,))
    torch.distributed.destroy_process_group()


def network() -> DiT4SRTransformer2DModel:
    """A frozen base in bfloat16 with control weights in float32."""
    spec = LRStreamSpec(attention="joint", residual=True, injection="conv", key_source="lr")
    made = DiT4SRTransformer2DModel.from_sd3(tiny_transformer().to(torch.bfloat16), spec)
    control = set(made.control_parameter_names()) - set(made.unreachable_parameter_names())
    for name, parameter in made.named_parameters():
        parameter.requires_grad_(name in control)
        if name in control:
            parameter.data = parameter.data.float()
    return made.train()


class Traffic(TorchDispatchMode):
    """Bytes that collective operations make whole (gathered) or take whole (reduced), by operation."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = str(func)
        if name.startswith("c10d."):
            sizes = [a.numel() * a.element_size() for a in args if isinstance(a, torch.Tensor)]
            self.bytes[name.split(".")[1]] += max(sizes, default=0)
        return func(*args, **(kwargs or {}))


def step(made: DiT4SRTransformer2DModel) -> Traffic:
    config = made.config
    latent = torch.randn(2, config.in_channels, 8, 8)
    text, pooled = torch.randn(2, 4, config.joint_attention_dim), torch.randn(2, config.pooled_projection_dim)
    with Traffic() as traffic, torch.autocast("cpu", torch.bfloat16):
        velocity = made(latent, latent, torch.full((2,), 500.0), text, pooled, return_dict=False)
        velocity.float().square().mean().backward()
    return traffic


@pytest.mark.parametrize("frozen", ["sharded", "whole"])
def test_memory_and_traffic_are_those_of_the_formulas(frozen: str, mesh: DeviceMesh) -> None:
    made = network()
    plan = plan_memory(made, frozen_bytes=2)
    trained = sum(p.numel() for p in made.parameters() if p.requires_grad)
    total = sum(p.numel() for p in made.parameters())
    buffers = 2 * sum(b.numel() for b in made.buffers())
    expected = shared(plan, RANKS, plan.frozen if frozen == "whole" else buffers)
    block = gathered_bytes(made, 2, 2, frozen)
    shard_network(made, mesh, precision="bf16-mixed", frozen=frozen)
    assert all(isinstance(p, DTensor) == (p.requires_grad or frozen == "sharded") for p in made.parameters())
    kept = {train: sum(own(p).numel() * p.element_size() for p in made.parameters() if p.requires_grad == train)
            for train in (True, False)}  # fmt: skip
    # The first process has the largest shares: rows are rounded up for each tensor.
    assert expected.trainable <= kept[True] < 2 * expected.trainable
    assert expected.frozen - buffers <= kept[False] < 2 * expected.frozen
    assert 0 < block < 2 * (2 * total)
    traffic = step(made).bytes
    gathered, reduced = traffic["_allgather_base_"], traffic["_reduce_scatter_base_"]
    # Each weight twice in bfloat16, before the forward and before the backward pass; each gradient once in float32.
    # Exactly so, because all of this network's rows are multiples of eight.
    assert gathered == 2 * 2 * (trained if frozen == "whole" else total)
    assert reduced == 4 * trained
    assert all(p.grad is not None for p in made.parameters() if p.requires_grad)


def test_every_block_is_a_group_of_its_own() -> None:
    made = network()
    assert blocks_of(made) == list(made.transformer_blocks)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("trainer.precision=16-mixed", "choose 32-true or bf16-mixed"),
        ("training.optimizer=adamw8bit", "adamw or muon"),
        ("callbacks.save_in_background=true", "save_in_background"),
        ("trainer.frozen=gone", "sharded, whole"),
    ],
)
def test_what_it_cannot_do_is_refused(change: str, words: str) -> None:
    with pytest.raises(UserError, match=words):
        check_sharded(compose_verb("train", "trainer=fsdp", "out=unused", change))

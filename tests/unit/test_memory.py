"""The predicted memory of a step, against what autograd really keeps."""

from __future__ import annotations

import weakref
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf
from tiny_checkpoint import compose_verb

from dit4sr.errors import UserError
from dit4sr.models.build import build_network, build_on_meta, freeze
from dit4sr.training.memory import activation_bytes, held, predict
from dit4sr.training.run import average_on


def composed(*overrides: str) -> dict[str, Any]:
    config = compose_verb("train", "out=unused", *overrides)
    return OmegaConf.to_container(config, resolve=True)  # type: ignore[return-value]


def kept(config: dict[str, Any], *, samples: int, side: int, frozen: bool, checkpointing: bool) -> tuple[int, int]:
    """Bytes that a forward pass keeps for the backward pass (weights and their casts left out), and the estimate."""
    backbone = config["backbone"]
    network = build_network(config["model"], backbone, 0)
    if frozen:
        freeze(network, pretrained=True)
        for parameter in network.parameters():
            if not parameter.requires_grad:
                parameter.data = parameter.data.bfloat16()
    if checkpointing:
        network.enable_gradient_checkpointing()
    weights = {tuple(p.shape) for p in network.parameters()}
    weights |= {tuple(reversed(shape)) for shape in weights}
    left_out = {t.untyped_storage().data_ptr() for t in (*network.parameters(), *network.buffers())}
    alive: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        place = storage.data_ptr()
        if frozen and tuple(tensor.shape) in weights:  # autocast's copy of a weight
            return tensor
        if place not in left_out and place not in alive:
            alive[place] = storage.nbytes()
            weakref.finalize(storage, alive.pop, place, None)
        return tensor

    fields, text = backbone["transformer"], backbone["text_encoder"]
    latent = torch.randn(samples, fields["in_channels"], side, side)
    tokens, pooled = torch.randn(samples, text["tokens"], text["width"]), torch.randn(samples, text["pooled_width"])
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        with torch.autocast("cpu", torch.bfloat16, enabled=frozen):
            velocity = network(latent, latent.clone(), torch.full((samples,), 500.0), tokens, pooled, return_dict=False)
        measured = sum(alive.values())
    del velocity
    estimate = activation_bytes(
        fields, latent_side=side, text_tokens=text["tokens"], samples=samples, checkpointing=checkpointing,
        width=2 if frozen else 4, frozen_base=frozen,
    )  # fmt: skip
    return measured, estimate


SMALL = ("backbone=small", "backbone.transformer.num_layers=2", "backbone.transformer.dual_attention_layers=[0,1]")


def test_what_autograd_keeps_is_what_was_estimated() -> None:
    for overrides, samples, side, frozen in ((("backbone=nano",), 4, 12, False), (SMALL, 1, 16, True)):
        measured, estimate = kept(composed(*overrides), samples=samples, side=side, frozen=frozen, checkpointing=False)
        assert 0.75 < measured / estimate < 1.3, (overrides, measured, estimate)


def test_with_checkpointing_less_than_the_estimate_is_kept_between_blocks() -> None:
    measured, estimate = kept(composed(*SMALL), samples=1, side=16, frozen=True, checkpointing=True)
    assert measured < estimate < kept(composed(*SMALL), samples=1, side=16, frozen=True, checkpointing=False)[1]


def test_sharding_and_offloading_leave_what_they_should() -> None:
    config = composed("experiment=paper", "backbone.pretrained=/unused")
    network = build_on_meta(config["model"], config["backbone"])

    def total(*overrides: str) -> float:
        other = composed("experiment=paper", "backbone.pretrained=/unused", *overrides)
        arguments = {"samples": 1, "half": True, **held(other["trainer"])}
        return predict(network, other["backbone"], other["training"], **arguments).total / 2**30

    fsdp = ("trainer=fsdp", "trainer.accelerator=cpu", "trainer.devices=8")
    numbers = [total(), total("trainer/memory=24gb"), total("trainer/memory=16gb"),
               total(*fsdp), total(*fsdp, "trainer.frozen=whole")]  # fmt: skip
    assert numbers == pytest.approx([12.12, 10.16, 8.85, 2.57, 5.86], abs=0.02)


def test_where_the_average_is() -> None:
    assert average_on(compose_verb("train", "out=unused", "trainer/memory=16gb").trainer) == "cpu"
    for overrides in (("trainer.average_on=disk",), ("trainer=fsdp", "trainer.average_on=cpu")):
        with pytest.raises(UserError, match=r"trainer\.average_on="):
            average_on(compose_verb("train", "out=unused", *overrides).trainer)

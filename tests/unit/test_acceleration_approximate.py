"""Approximations: near the exact result, off where they are not asked for, and exact at their limits."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
import torch._inductor.config
from tiny_acceleration import EXACT, sampled
from tiny_sd3 import relative_error, tiny_inputs, tiny_network

from dit4sr.acceleration import accelerate
from dit4sr.acceleration.blocks import is_block_matrix
from dit4sr.sampling import TiledNetwork

WIDE: dict[str, Any] = {"attention_head_dim": 32, "num_attention_heads": 2, "caption_projection_dim": 64}
"""A width that blocks of 64 weights divide."""


@torch.no_grad()
def test_guidance_within_an_interval_is_exact_outside_it() -> None:
    network, lr = tiny_network(), tiny_inputs().lr
    seen: list[int] = []

    def counting(z: torch.Tensor, *rest: Any, **kwargs: Any) -> torch.Tensor:
        seen.append(len(z))
        return network(z, *rest, **kwargs)

    everywhere = sampled(network, lr)
    assert torch.equal(sampled(counting, lr, guidance_interval=(0.0, 1.0)), everywhere)
    assert seen == [4] * 4
    seen.clear()
    nowhere = sampled(counting, lr, guidance_interval=(0.0, 0.0))
    assert seen == [2] * 4, "one forward of each image outside"
    assert torch.equal(nowhere, sampled(network, lr, guidance=1.0))
    seen.clear()
    partly = sampled(counting, lr, guidance_interval=(0.3, 0.95))
    assert seen == [2, 4, 4, 2], "σ of four steps: 1, 0.86, 0.6 and 0.009"
    assert not torch.equal(partly, everywhere)


@torch.no_grad()
def test_blocks_are_run_again_only_where_the_first_ones_output_has_changed() -> None:
    lr = tiny_inputs().lr
    expected = sampled(accelerate(tiny_network(), EXACT), lr, steps=6)
    never = accelerate(tiny_network(), replace(EXACT, reuse_below=1e-9))
    assert torch.equal(sampled(never, lr, steps=6), expected)
    assert (never.reuse.run, never.reuse.reused) == (6, 0)
    always = accelerate(tiny_network(), replace(EXACT, reuse_below=1e9))
    first = sampled(always, lr, steps=6)
    assert (always.reuse.run, always.reuse.reused) == (1, 5), "each sampling begins anew"
    assert relative_error(first, expected) > 1e-3
    assert torch.equal(sampled(always, lr, steps=6), first)
    assert (always.reuse.run, always.reuse.reused) == (2, 10)
    # Of several tiles a step each would need its own state, as would calls one by one: all are run.
    tiled = [
        TiledNetwork(accelerate(tiny_network(), s), 4, 2, batch=2) for s in (replace(EXACT, reuse_below=1e9), EXACT)
    ]
    assert torch.equal(sampled(tiled[0], lr, steps=3), sampled(tiled[1], lr, steps=3))
    inputs = tiny_inputs()
    assert torch.equal(inputs.call(always), inputs.call(accelerate(tiny_network(), EXACT)))


@pytest.mark.parametrize(("kind", "bits", "within"), [("int8_weights", 8, 0.05), ("int8", 8, 0.1), ("nf4", 4, 0.5)])
@torch.no_grad()
def test_quantised_blocks_are_smaller_and_near(kind: str, bits: int, within: float) -> None:
    pytest.importorskip("bitsandbytes" if kind == "nf4" else "torchao")
    inputs = tiny_inputs()
    compiler = torch._inductor.config.save_config_portable()
    exact = accelerate(tiny_network(**WIDE), EXACT)
    expected = inputs.call(exact)
    fast = accelerate(tiny_network(**WIDE), replace(EXACT, quantise=kind))  # type: ignore[arg-type]
    error = relative_error(inputs.call(fast), expected)
    assert 0 < error < within
    matrices = {name for name, module in exact.named_modules() if is_block_matrix(name, module)}
    assert "trunk.blocks.0.attn.project.control.linears.0" in matrices, "folded first, then quantised"
    assert not any("modulations" in name or "proj_out" in name for name in matrices)
    other = {name for name, module in fast.named_modules() if is_block_matrix(name, module)}
    for name in matrices:
        before, after = exact.get_submodule(name).weight, fast.get_submodule(name).weight
        assert type(after) is not type(before)
    assert other <= matrices
    assert torch.equal(fast.proj_out.weight, exact.proj_out.weight)
    assert torch._inductor.config.save_config_portable() == compiler, "other networks are compiled as before"

"""Compilation by inductor, for real: the same velocity, nothing compiled again over the steps, code kept on disk."""

from __future__ import annotations

import copy
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch._inductor.config
from tiny_acceleration import EXACT, sampled
from tiny_sd3 import relative_error, tiny_controlnet, tiny_inputs, tiny_network

from dit4sr.acceleration import accelerate
from dit4sr.models import attention_kernel

# One block with dual attention, one without (the last): the least that has every kind of code.
SMALL: dict[str, Any] = {"num_layers": 2, "dual_attention_layers": (0,)}


@pytest.fixture(autouse=True)
def fresh_compiler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "inductor"))
    torch.compiler.reset()
    torch._dynamo.utils.counters.clear()
    # No pool of compiling processes, each of which would import torch.
    with torch._inductor.config.patch(compile_threads=1):
        yield
    torch.compiler.reset()


def compilations() -> int:
    """Pieces of code that were compiled since the counters were cleared."""
    return int(torch._dynamo.utils.counters["stats"]["unique_graphs"])


@torch.no_grad()
def test_nothing_is_compiled_again_over_the_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Counted without generating code, by which nothing about guards changes."""
    network = tiny_network(**SMALL)
    expected = copy.deepcopy(network)
    for compiled in ("blocks", "step"):
        torch.compiler.reset()
        torch._dynamo.utils.counters.clear()
        fast = accelerate(copy.deepcopy(network), replace(EXACT, depth_wise="shifts", compile=compiled))
        how: dict[str, Any] = {"backend": "eager", "dynamic": False, "fullgraph": True}
        if compiled == "step":
            fast.run = torch.compile(fast._run, **how)
        else:
            for block in fast.trunk.blocks:
                block.compile(**how)
        # The sizes that a restoration has: full tiles, and the last batch of them.
        inputs = tiny_inputs(6, 10, batch=1)
        reference = sampled(expected, inputs.lr, steps=2)
        assert relative_error(sampled(fast, inputs.lr, steps=2), reference) < 5e-5
        per_size = compilations()
        assert per_size == (2 if compiled == "blocks" else 1)
        sampled(fast, inputs.lr, steps=3)
        fast.lr_injection_scale = 1.2
        sampled(fast, inputs.lr, steps=1)
        assert compilations() == per_size, "another schedule, or another injection scale, is no other code"
        sampled(fast, tiny_inputs(8, 8, batch=1).lr, steps=1)
        sampled(fast, inputs.lr, steps=1)
        assert compilations() == 2 * per_size, "a second size once, and the first is still there"


@torch.no_grad()
def test_one_network_after_the_other_in_one_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each has its own sizes; torch's limits are for all of them together."""
    compile_module = torch.nn.Module.compile
    monkeypatch.setattr(torch.nn.Module, "compile", lambda m, **how: compile_module(m, **how | {"backend": "eager"}))
    monkeypatch.setattr("dit4sr.acceleration.compiling.VERSIONS", 6)
    sizes = [tiny_inputs(2 * n, 4, batch=1) for n in (1, 2, 3)]
    with torch._dynamo.config.patch(recompile_limit=2, accumulated_recompile_limit=2):
        for _ in range(4):
            network = tiny_network(**SMALL)
            expected = [inputs.call(network) for inputs in sizes]
            fast = accelerate(network, replace(EXACT, compile="blocks", depth_wise="auto"))
            for inputs, velocity in zip(sizes, expected, strict=True):
                assert relative_error(inputs.call(fast), velocity) < 1e-4


@pytest.mark.skipif(not torch.cuda.is_available(), reason="a CUDA graph needs a GPU")
@torch.no_grad()
def test_a_recorded_step_is_the_plain_one() -> None:
    network, lr = tiny_network(**SMALL).cuda(), tiny_inputs(6, 10, batch=1).lr.cuda()
    expected = sampled(network, lr)
    fast = accelerate(network, replace(EXACT, cuda_graphs=True))
    for _ in range(2):
        assert relative_error(sampled(fast, lr), expected) < 1e-3
    other = tiny_inputs(8, 8, batch=1).lr.cuda()
    sampled(fast, other)
    assert relative_error(sampled(fast, lr), expected) < 1e-3
    assert len(fast.warm_ups) == 2


@pytest.mark.timeout(600)
@pytest.mark.parametrize(("make", "layers"), [(tiny_network, 1), (tiny_controlnet, 2)])
@torch.no_grad()
def test_inductor_compiles_the_blocks(make: Any, layers: int, caplog: pytest.LogCaptureFixture) -> None:
    network, inputs = make(num_layers=layers, dual_attention_layers=()), tiny_inputs(4, 6, batch=1)
    expected = inputs.call(network)
    fast = accelerate(
        network, replace(EXACT, compile="blocks", compile_options={"combo_kernels": True}, depth_wise="auto")
    )
    with caplog.at_level("INFO", logger="dit4sr.acceleration.network"):
        assert relative_error(inputs.call(fast), expected) < 1e-4
        inputs.call(fast)
    assert len(fast.warm_ups) == 1
    assert "ready for latents of 1×4×4×6 in" in caplog.text
    assert len([r for r in caplog.records if r.name.startswith("dit4sr")]) == 1, "once a size"
    assert any(Path(os.environ["TORCHINDUCTOR_CACHE_DIR"]).rglob("*")), "kept for the next process"


@torch.no_grad()
def test_code_compiled_for_one_attention_kernel_is_not_taken_for_another(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither in the process nor from the disk: which kernel it is stands in the code, and around it in the context."""
    # On a CPU torch has no order of kernels: there only the first is let through.
    allowed = attention_kernel.sdpa_kernel
    monkeypatch.setattr(attention_kernel, "sdpa_kernel", lambda order, set_priority: allowed(order[:1]))
    network = tiny_network(num_layers=1, dual_attention_layers=())
    inputs = tiny_inputs(4, 6, batch=1)
    fused = "aten::_scaled_dot_product_flash_attention_for_cpu"

    def is_fused(choice: str) -> bool:
        fast = accelerate(copy.deepcopy(network), replace(EXACT, compile="blocks", attention=choice))
        inputs.call(fast)  # compiles; the next call is the code's alone
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profiled:
            inputs.call(fast)
        return fused in {event.key for event in profiled.key_averages()}

    assert [is_fused(choice) for choice in ("math", "flash", "math")] == [False, True, False]
    torch.compiler.reset()  # as the next process, which has the code on the disk alone
    assert [is_fused(choice) for choice in ("flash", "math")] == [True, False]

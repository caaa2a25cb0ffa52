"""Compiled training: the same numbers, the same names, and as few graphs as there are kinds of block."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_sd3 import DIT4SR, tiny_network
from tiny_training import config_of
from torch import Tensor, nn

from dit4sr.errors import UserError
from dit4sr.models.checkpoint import read_checkpoint
from dit4sr.training.compiling import as_written, compile_network
from dit4sr.training.run import train


def inputs(batch: int = 2) -> tuple[Tensor, ...]:
    torch.manual_seed(0)
    z, lr = torch.randn(2, batch, 4, 6, 8).unbind(0)
    return z, lr, torch.full((batch,), 300.0), torch.randn(batch, 5, 12), torch.randn(batch, 10)


class Counting:
    """A backend that runs what it is given as it is."""

    def __init__(self) -> None:
        self.graphs = self.calls = 0

    def __call__(self, graph: torch.fx.GraphModule, example: Any) -> Any:
        self.graphs += 1

        def run(*arguments: Any) -> Any:
            self.calls += 1
            return graph.forward(*arguments)

        return run


@pytest.fixture(autouse=True)
def _fresh() -> None:
    torch._dynamo.reset()


@pytest.mark.parametrize("checkpointing", [False, True])
def test_blocks_of_one_kind_share_a_graph_and_nothing_changes(checkpointing: bool) -> None:
    plain, compiled = (tiny_network(DIT4SR, num_layers=5).train() for _ in range(2))
    backend = Counting()
    compile_network(compiled, "blocks", backend)
    if checkpointing:
        compiled.enable_gradient_checkpointing()
    outputs = [network(*inputs(), return_dict=False) for network in (plain, compiled)]
    torch.testing.assert_close(*outputs)
    assert backend.graphs == 3  # with dual attention, without, and the last
    assert backend.calls == 5
    for output in outputs:
        output.square().mean().backward()
    for (name, a), (other, b) in zip(plain.named_parameters(), compiled.named_parameters(), strict=True):
        assert name == other
        if a.grad is not None:
            torch.testing.assert_close(a.grad, b.grad)
    assert list(compiled.state_dict()) == list(plain.state_dict())


def test_what_is_not_training_runs_as_written() -> None:
    network, backend = tiny_network(), Counting()
    compile_network(network, "blocks", backend)
    with as_written(), torch.no_grad():
        network(*inputs(), return_dict=False)
    assert backend.calls == 0
    with torch.no_grad():
        network(*inputs(), return_dict=False)
    assert backend.calls == 3


def test_false_compiles_nothing() -> None:
    network = tiny_network()
    compile_network(network, False)
    assert all(module._compiled_call_impl is None for module in network.modules())


@pytest.mark.parametrize("mode", ["all", True, 0, 1, "step"])
def test_another_mode_is_refused(mode: Any) -> None:
    with pytest.raises(UserError, match="choose false, blocks or network"):
        compile_network(nn.Linear(1, 1), mode)


def test_without_a_compiler_it_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UserError, match=r"install g\+\+"):
        compile_network(nn.Linear(1, 1), "blocks")


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["blocks", "network"])
def test_a_compiled_training_is_the_same_training(mode: str, embedded: Path, tmp_path: Path) -> None:
    """By the real compiler, its validation included; rounding differs."""
    results = []
    for compiled in ("false", mode):
        checkpoint = train(
            config_of(embedded, "trainer.max_steps=8", f"training.compile={compiled}", "callbacks.validate_every=8",
                      "callbacks.validation_samples=1"), tmp_path / compiled)  # fmt: skip
        assert checkpoint is not None
        results.append(read_checkpoint(checkpoint)["state_dict"])
    assert list(results[0]) == list(results[1])
    for name, value in results[0].items():
        torch.testing.assert_close(value, results[1][name], atol=1e-4, rtol=1e-3)

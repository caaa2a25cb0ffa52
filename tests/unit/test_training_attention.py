"""The kernel of attention is chosen for a whole training: blocks that are run again in a backward pass find it too."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_training import config_of

from dit4sr.models.attention_kernel import BACKENDS, attention_kernel
from dit4sr.models.blocks import LRStreamBlock
from dit4sr.training.run import train


def first_choice() -> int:
    return int(torch._C._get_sdp_priority_order()[0])


def test_it_holds_in_the_backward_pass_and_no_longer(
    embedded: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = torch._C._get_sdp_priority_order()
    math = int(BACKENDS["math"].value)
    assert first_choice() != math
    monkeypatch.setattr(
        "dit4sr.training.module.attention_kernel", lambda choice, device: attention_kernel("math", device)
    )
    seen: list[tuple[bool, int]] = []
    forward = LRStreamBlock.forward

    def noted(block: Any, *arguments: Any) -> Any:
        seen.append((torch._C._current_graph_task_id() != -1, first_choice()))  # within a backward pass, or not
        return forward(block, *arguments)

    monkeypatch.setattr(LRStreamBlock, "forward", noted)
    assert train(config_of(embedded, "training.gradient_checkpointing=true", "trainer.max_steps=2"), tmp_path / "run")
    assert {backward for backward, _ in seen} == {False, True}
    assert {choice for _, choice in seen} == {math}
    assert torch._C._get_sdp_priority_order() == before

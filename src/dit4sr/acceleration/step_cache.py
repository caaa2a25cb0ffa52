"""Approximate: where the first block's output hardly changes from one step to the next, the other blocks' is reused.

What the blocks after the first add to X is kept from the last step at which they were run. At a step whose first
block's output differs from that step's by less than a share (mean absolute difference over mean absolute value), it
is added again and the blocks are not run. Timestep Embedding Aware Cache (arXiv 2411.19108) is the idea of deciding
by the change of an early signal; asking the first block itself is known as first-block cache. On a GPU each step
waits for the decision, one number.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

Through = Callable[[Tensor, Tensor, list[Any]], tuple[Tensor, Tensor]]
"""(image, text, blocks) → image and text after those blocks."""


class BlockReuse:
    """The state of one sampling.

    Args:
        below: the share of change up to which blocks are not run.

    Attributes:
        run, reused: numbers of steps of each kind, over all samplings.
    """

    def __init__(self, below: float) -> None:
        self.below = below
        self.run = self.reused = 0
        self.kept: tuple[Tensor, Tensor] | None = None

    def forget(self) -> None:
        """A new sampling begins."""
        self.kept = None

    def through(self, image: Tensor, text: Tensor, through: Through, blocks: list[Any]) -> Tensor:
        """X after all blocks, (1, B, K, D), the last of them perhaps not run.

        Args:
            image: (S, B, K, D).
            text: (B, M, D).
            through: runs blocks.
            blocks: all of them.
        """
        image, text = through(image, text, blocks[:1])
        x = image[:1]
        if self.kept is not None and self.kept[0].shape == x.shape and len(blocks) > 1:
            before, added = self.kept
            if float((x - before).abs().mean() / before.abs().mean()) < self.below:
                self.reused += 1
                return x + added
        self.run += 1
        before = x.clone()
        image, _ = through(image, text, blocks[1:])
        self.kept = before, image[:1] - before
        return image

"""Optimisers from config: AdamW as published, or Muon for short runs from scratch."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from dit4sr.errors import UserError

OPTIMIZERS = ("adamw", "adamw8bit", "muon")


def build_optimizer(network: nn.Module, config: Mapping[str, Any]) -> Optimizer:
    """The optimiser of the parameters that train.

    ``adamw`` is the published recipe (arXiv 1711.05101); ``adamw8bit`` keeps its moments in blocks of 8-bit numbers
    (arXiv 2110.02861; bitsandbytes). ``muon`` updates the matrices inside the transformer
    blocks by Muon (momentum, orthogonalised by Newton–Schulz: Jordan et al., 2024, kellerjordan.github.io/posts/muon;
    scaled to AdamW's step size as in arXiv 2502.16982, so that one learning rate serves both) and everything else
    by AdamW.

    Args:
        network: parameters with ``requires_grad`` are taken.
        config: configs/training: optimizer, learning_rate, betas, weight_decay.

    Raises:
        UserError: for an unknown optimiser.
    """
    if config["optimizer"] not in OPTIMIZERS:
        raise UserError(f"training.optimizer={config['optimizer']!r}: choose one of {', '.join(OPTIMIZERS)}")
    rate, decay = config["learning_rate"], config["weight_decay"]
    named = [(n, p) for n, p in network.named_parameters() if p.requires_grad]
    matrices = [p for n, p in named if config["optimizer"] == "muon" and is_block_matrix(n, p)]
    others = [p for n, p in named if config["optimizer"] != "muon" or not is_block_matrix(n, p)]
    if config["optimizer"] == "adamw8bit":
        return eight_bit_adamw()(others, lr=rate, betas=tuple(config["betas"]), weight_decay=decay)
    adamw = torch.optim.AdamW(others, lr=rate, betas=tuple(config["betas"]), weight_decay=decay)
    if not matrices:
        return adamw
    muon = torch.optim.Muon(matrices, lr=rate, weight_decay=decay, adjust_lr_fn="match_rms_adamw")
    return Together([muon, adamw])


def eight_bit_adamw() -> Callable[..., Optimizer]:
    """The class AdamW8bit of bitsandbytes.

    Raises:
        UserError: where bitsandbytes is not installed.
    """
    try:
        from bitsandbytes.optim import AdamW8bit
    except ImportError as error:
        raise UserError(
            "training.optimizer=adamw8bit (of trainer/memory=24gb) needs bitsandbytes: pip install bitsandbytes, or "
            "set training.optimizer=adamw"
        ) from error
    made: Callable[..., Optimizer] = AdamW8bit
    return made


def is_block_matrix(name: str, parameter: nn.Parameter) -> bool:
    """Whether Muon takes a parameter: a linear map inside a block that is no modulation."""
    return parameter.ndim == 2 and "transformer_blocks." in name and "norm" not in name


class Together(Optimizer):
    """Several optimisers that step as one, so that a schedule and a checkpoint see a single one."""

    def __init__(self, optimizers: Sequence[Optimizer]) -> None:
        self.optimizers = list(optimizers)
        parameters = [p for o in self.optimizers for g in o.param_groups for p in g["params"]]
        super().__init__(parameters, {})
        self._share()

    def _share(self) -> None:
        """Make the groups and the state those of the parts: what a schedule writes, they read."""
        self.param_groups = [group for o in self.optimizers for group in o.param_groups]
        self.state.clear()
        for optimizer in self.optimizers:
            self.state.update(optimizer.state)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Evaluate the closure once, then let every part step."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for optimizer in self.optimizers:
            optimizer.step()
        return loss

    def state_dict(self) -> dict[str, Any]:
        """The parts' states, in order."""
        return {"parts": [optimizer.state_dict() for optimizer in self.optimizers]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take the parts' states back."""
        for optimizer, state in zip(self.optimizers, state_dict["parts"], strict=True):
            optimizer.load_state_dict(state)
        self._share()

"""Optimisers from config: AdamW as published, or Muon for short runs from scratch."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer

from dit4sr.errors import UserError
from dit4sr.training.choices import OPTIMIZERS


def build_optimizer(network: nn.Module, config: Mapping[str, Any], *, scaled: bool = False) -> Optimizer:
    """The optimiser of the parameters that train.

    ``adamw`` is the published recipe (arXiv 1711.05101); ``adamw8bit`` keeps its moments in blocks of 8-bit numbers
    (arXiv 2110.02861; bitsandbytes). ``muon`` updates the matrices inside the transformer
    blocks by Muon (momentum, orthogonalised by Newton–Schulz: Jordan et al., 2024, kellerjordan.github.io/posts/muon;
    scaled to AdamW's step size as in arXiv 2502.16982, so that one learning rate serves both) and everything else
    by AdamW.

    On a GPU AdamW is fused: one kernel reads and writes each number once. On the CPU it is not, so that runs there stay
    what they were; the two round differently.

    Args:
        network: parameters with ``requires_grad`` are taken, on the device where they train.
        config: configs/training: optimizer, learning_rate, betas, weight_decay.
        scaled: gradients are scaled (16-mixed), which a fused optimiser would undo itself, after they are clipped.

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
    fused = can_fuse(others) and not scaled
    adamw = torch.optim.AdamW(others, lr=rate, betas=tuple(config["betas"]), weight_decay=decay, fused=fused or None)
    adamw.register_load_state_dict_pre_hook(_keep_fused)
    if not matrices:
        return adamw
    muon = torch.optim.Muon(matrices, lr=rate, weight_decay=decay, adjust_lr_fn="match_rms_adamw")
    return Together([muon, adamw])


def can_fuse(parameters: Sequence[Tensor]) -> bool:
    """Whether AdamW is fused: where all that trains is whole, in floating point and on a GPU."""
    return bool(parameters) and all(
        p.is_cuda and p.is_floating_point() and not isinstance(p, DTensor) for p in parameters
    )


def skips_on_device(optimizer: Optimizer) -> bool:
    """Whether an optimiser leaves weights, moments and its count of steps alone where its ``found_inf`` is 1."""
    return type(optimizer) is torch.optim.AdamW and all(group["fused"] for group in optimizer.param_groups)


def _keep_fused(optimizer: Optimizer, state_dict: dict[str, Any]) -> dict[str, Any]:
    """A checkpoint of another device says whether AdamW was fused there; what holds is how it is built here."""
    own = ({name: group[name] for name in ("fused", "foreach")} for group in optimizer.param_groups)
    groups = [{**theirs, **ours} for theirs, ours in zip(state_dict["param_groups"], own, strict=True)]
    return {**state_dict, "param_groups": groups}


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

"""The LR Injection for inference: h_X ← h_X + s·f(h_L), of B images of K tokens and C = 4D channels."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from dit4sr.acceleration.settings import AccelerationSettings
from dit4sr.models.blocks import Grid, LRStreamFeedForward


class Injection(nn.Module):
    """An injection; what is made of h_L is a subclass's.

    Its ``forward`` changes h_X in place, so that h_L, which the MLP's second map reads too, is not copied.
    """

    def forward(self, h: Tensor, grid: Grid, scale: Tensor | float) -> Tensor:
        """Add to h_X.

        Args:
            h: h_X and h_L, (2, B, K, C); h_X is changed.
            grid: (height, width) of the token grid.
            scale: s; a tensor of one value, in float32 at least, where code is compiled or recorded for any s.

        Returns:
            h.
        """
        h_x, added = h[0], self.of_lr(h[1], grid)
        if isinstance(scale, Tensor):
            # Not in h_X's type, to which torch would round s: 1.2 is 1.203 in bfloat16.
            h_x.copy_(torch.addcmul(h_x.to(scale.dtype), added.to(scale.dtype), scale))
        else:
            h_x.add_(added.mul_(scale))  # a plain number is not rounded before it multiplies
        return h

    def of_lr(self, h: Tensor, grid: Grid) -> Tensor:
        """f(h_L): (B, K, C) → (B, K, C)."""
        raise NotImplementedError


class GridConv(Injection):
    """The depth-wise convolution as it is: the tokens are a channels-last image already."""

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__()
        self.conv = conv.to(memory_format=torch.channels_last)

    def of_lr(self, h: Tensor, grid: Grid) -> Tensor:
        return self.conv(h.unflatten(1, grid).permute(0, 3, 1, 2)).permute(0, 2, 3, 1).flatten(1, 2)


class ShiftedConv(Injection):
    """A depth-wise 3×3 convolution as nine shifted products on the token grid: pointwise work that a compiler fuses.

    Args:
        conv: the depth-wise convolution, of C channels.
    """

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__()
        # (3, 3, C): channels last, as the tokens have them.
        self.weight = nn.Parameter(conv.weight.detach().squeeze(1).permute(1, 2, 0).contiguous(), requires_grad=False)
        self.bias: Any = conv.bias

    def of_lr(self, h: Tensor, grid: Grid) -> Tensor:
        height, width = grid
        padded = pad(h.unflatten(1, grid), (0, 0, 1, 1, 1, 1))
        out = self.bias
        for y in range(3):
            for x in range(3):
                out = torch.addcmul(out, padded[:, y : y + height, x : x + width], self.weight[y, x])
        return out.flatten(1, 2)


class KernelConv(ShiftedConv):
    """A depth-wise 3×3 convolution and the sum with h_X as one kernel of a GPU: see depth_wise.py."""

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__(conv)
        from dit4sr.acceleration.depth_wise import inject_  # Triton comes where it is used

        self.inject_ = inject_

    def forward(self, h: Tensor, grid: Grid, scale: Tensor | float) -> Tensor:
        if not h.is_cuda or not isinstance(scale, Tensor):  # the network was moved away since
            return super().forward(h, grid, scale)
        self.inject_(h, self.weight, self.bias, scale, *grid)
        return h


class DenseInjection(Injection):
    """A linear layer (variant D)."""

    def __init__(self, linear: nn.Module) -> None:
        super().__init__()
        self.linear = linear

    def of_lr(self, h: Tensor, grid: Grid) -> Tensor:
        return self.linear(h)


class ChannelInjection(Injection):
    """A factor and a summand a channel."""

    def __init__(self, scale: nn.Parameter, shift: nn.Parameter) -> None:
        super().__init__()
        self.scale, self.shift = scale, shift

    def of_lr(self, h: Tensor, grid: Grid) -> Tensor:
        return torch.addcmul(self.shift, h, self.scale)


CONVOLUTIONS = {"conv": GridConv, "shifts": ShiftedConv, "kernel": KernelConv}


def convolution_of(settings: AccelerationSettings, device: torch.device) -> str:
    """How the convolution is computed on a device; see :class:`AccelerationSettings`, ``depth_wise``."""
    if settings.depth_wise != "auto":
        return settings.depth_wise
    if settings.compile == "none":
        return "conv"
    return "kernel" if device.type == "cuda" else "shifts"


def injection_of(ff: LRStreamFeedForward, settings: AccelerationSettings) -> Injection | None:
    """The injection of a trained MLP; None for one without."""
    if hasattr(ff, "control_conv"):
        conv = ff.control_conv
        return CONVOLUTIONS[convolution_of(settings, conv.weight.device)](conv)
    if hasattr(ff, "control_linear"):
        return DenseInjection(ff.control_linear)
    if hasattr(ff, "control_scale"):
        return ChannelInjection(ff.control_scale, ff.control_shift)
    return None

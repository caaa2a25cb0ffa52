"""The LR Injection for inference: what it makes of h_L, B images of K tokens and C = 4D channels."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from dit4sr.acceleration.settings import AccelerationSettings
from dit4sr.models.blocks import Grid, LRStreamFeedForward


class ShiftedConv(nn.Module):
    """A depth-wise 3×3 convolution as nine shifted products on the token grid: pointwise work that a compiler fuses.

    Args:
        conv: the depth-wise convolution, of C channels.
    """

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__()
        # (3, 3, C): channels last, as the tokens have them.
        self.weight = nn.Parameter(conv.weight.detach().squeeze(1).permute(1, 2, 0).contiguous(), requires_grad=False)
        self.bias = conv.bias

    def forward(self, h: Tensor, grid: Grid) -> Tensor:
        """(B, K, C) → (B, K, C)."""
        height, width = grid
        padded = pad(h.unflatten(1, grid), (0, 0, 1, 1, 1, 1))
        assert self.bias is not None
        out = self.bias
        for y in range(3):
            for x in range(3):
                out = torch.addcmul(out, padded[:, y : y + height, x : x + width], self.weight[y, x])
        return out.flatten(1, 2)


class GridConv(nn.Module):
    """The depth-wise convolution as it is: the tokens are a channels-last image already."""

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__()
        self.conv = conv.to(memory_format=torch.channels_last)

    def forward(self, h: Tensor, grid: Grid) -> Tensor:
        """(B, K, C) → (B, K, C)."""
        return self.conv(h.unflatten(1, grid).permute(0, 3, 1, 2)).permute(0, 2, 3, 1).flatten(1, 2)


class Injection(nn.Module):
    """What h_X is given s times of.

    Args:
        conv, linear: at most one of them; else ``per_channel``.
        per_channel: scale and shift, each (C,).
    """

    def __init__(
        self,
        conv: ShiftedConv | GridConv | None = None,
        linear: nn.Module | None = None,
        per_channel: tuple[nn.Parameter, nn.Parameter] | None = None,
    ) -> None:
        super().__init__()
        self.conv, self.linear = conv, linear
        if per_channel is not None:
            self.scale, self.shift = per_channel

    def forward(self, h_l: Tensor, grid: Grid) -> Tensor:
        """(B, K, C) → (B, K, C)."""
        if self.conv is not None:
            return self.conv(h_l, grid)
        if self.linear is not None:
            return self.linear(h_l)
        return torch.addcmul(self.shift, h_l, self.scale)


def injection_of(ff: LRStreamFeedForward, settings: AccelerationSettings) -> Callable[..., Tensor] | None:
    """The injection of a trained MLP; None for one without."""
    if hasattr(ff, "control_conv"):
        return Injection(conv=(ShiftedConv if settings.depth_wise == "shifts" else GridConv)(ff.control_conv))
    if hasattr(ff, "control_linear"):
        return Injection(linear=ff.control_linear)
    if hasattr(ff, "control_scale"):
        return Injection(per_channel=(ff.control_scale, ff.control_shift))
    return None

"""DiT4SR and its variants for inference. Legend: see projections.py."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from dit4sr.acceleration.blocks import modulate
from dit4sr.acceleration.network import FastNetwork
from dit4sr.acceleration.settings import AccelerationSettings
from dit4sr.acceleration.step_cache import BlockReuse
from dit4sr.acceleration.trunk import Trunk
from dit4sr.models.blocks import Grid
from dit4sr.models.dit4sr import DiT4SRTransformer2DModel


class FastDiT4SR(FastNetwork):
    """DiT4SR or one of its variants A–D.

    Args:
        network: the trained one; its parameters are taken over, and it can no longer be used.
        settings: what to do.
    """

    def __init__(self, network: DiT4SRTransformer2DModel, settings: AccelerationSettings) -> None:
        super().__init__(network.config, settings)
        self.spec = network.spec
        like = network.proj_out.weight
        # In float32 at least: s of 1.2 would be 1.203 in bfloat16.
        exact = torch.promote_types(like.dtype, torch.float32)
        scale = torch.full((), network.lr_injection_scale, device=like.device, dtype=exact)
        self.register_buffer("scale", scale, persistent=False)
        self.set_scale = float(network.lr_injection_scale)
        count = len(network.transformer_blocks)
        self.trunk = Trunk(network, settings, blocks=count, ends=network.norm_out)
        self.proj_out = network.proj_out

    @property
    def trunks(self) -> list[Trunk]:
        return [self.trunk]

    @property
    def lr_injection_scale(self) -> float:
        """s of the LR Injection."""
        return self.set_scale

    @lr_injection_scale.setter
    def lr_injection_scale(self, scale: float) -> None:
        self.set_scale = float(scale)
        self.scale.fill_(scale)

    def _run(
        self,
        z: Tensor,
        lr: Tensor | None,
        text: Tensor,
        modulation: Tensor,
        positions: list[Tensor | None],
        scale: Tensor | float,
        grid: Grid,
        reuse: BlockReuse | None = None,
    ) -> Tensor:
        trunk = self.trunk
        parts = trunk.split(modulation)
        x = trunk.embed(z, positions[0])
        image = x.unsqueeze(0) if lr is None else torch.stack([x, lr])
        blocks = list(enumerate(trunk.blocks))

        def through(image: Tensor, text: Tensor, some: list[tuple[int, nn.Module]]) -> tuple[Tensor, Tensor]:
            for i, block in some:
                image, text = block(image, text, parts[2 * i], parts[2 * i + 1], grid, scale)
            return image, text

        if reuse is None:
            image, _ = through(image, text, blocks)
        else:
            image = reuse.through(image, text, through, blocks)
        out_scale, out_shift = parts[-1].unsqueeze(1).chunk(2, dim=-1)
        return self.unpatchify(self.proj_out(modulate(image[0], out_shift, out_scale)), grid)

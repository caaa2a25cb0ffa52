"""The SD3-ControlNet baseline for inference. Legend: see projections.py."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from dit4sr.acceleration.blocks import modulate
from dit4sr.acceleration.network import FastNetwork
from dit4sr.acceleration.settings import AccelerationSettings
from dit4sr.acceleration.step_cache import BlockReuse
from dit4sr.acceleration.trunk import PatchEmbedding, Trunk
from dit4sr.models.blocks import Grid
from dit4sr.models.controlnet import SD3ControlNet


class FastControlNet(FastNetwork):
    """The SD3-ControlNet baseline: residual i of the ControlNet after the transformer's blocks 2i and 2i+1.

    Args:
        network: the trained one; its parameters are taken over, and it can no longer be used.
        settings: what to do.
    """

    def __init__(self, network: SD3ControlNet, settings: AccelerationSettings) -> None:
        super().__init__(network.config, settings)
        transformer, controlnet = network.transformer, network.controlnet
        like = transformer.proj_out.weight
        self.register_buffer("scale", torch.ones((), device=like.device, dtype=like.dtype), persistent=False)
        count = len(transformer.transformer_blocks)
        read = count // 2  # residuals that are read: the last block's is not
        self.base = Trunk(transformer, settings, blocks=count, ends=transformer.norm_out)
        self.control = Trunk(controlnet, settings, blocks=read)
        self.condition = PatchEmbedding(controlnet.pos_embed_input)
        self.residuals = nn.ModuleList(list(controlnet.controlnet_blocks)[:read])
        self.proj_out = transformer.proj_out

    @property
    def trunks(self) -> list[Trunk]:
        return [self.base, self.control]

    @property
    def lr_embed(self) -> PatchEmbedding:
        return self.condition

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
        base, control = self.base, self.control
        sizes = [sum(trunk.modulations.sizes) for trunk in self.trunks]
        of_base, of_control = modulation.split(sizes, dim=-1)
        # Contiguous as the text of later blocks is, so that these need no other code.
        text, control_text = (part.contiguous() for part in text.chunk(2, dim=-1))
        residuals: list[Tensor] = []
        if lr is not None:
            parts = control.split(of_control)
            image = (control.embed(z, positions[1]) + lr).unsqueeze(0)
            for i, block in enumerate(control.blocks):
                image, control_text = block(image, control_text, parts[2 * i], parts[2 * i + 1], grid, scale)
                residuals.append(self.residuals[i](image))

        parts = base.split(of_base)
        image = base.embed(z, positions[0]).unsqueeze(0)
        last = len(base.blocks) - 1
        for i, block in enumerate(base.blocks):
            image, text = block(image, text, parts[2 * i], parts[2 * i + 1], grid, scale)
            if residuals and i < last:
                image = image + residuals[i // 2]
        out_scale, out_shift = parts[-1].unsqueeze(1).chunk(2, dim=-1)
        return self.unpatchify(self.proj_out(modulate(image[0], out_shift, out_scale)), grid)

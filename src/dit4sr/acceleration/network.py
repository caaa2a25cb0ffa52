"""A network for inference alone, made of a trained one: what DiT4SR's and the baseline's have in common.

It is called as the trained one is; and where it is sampled (:mod:`dit4sr.sampling`), what no step changes is prepared
ahead: see :class:`dit4sr.stepping.Preparing`. Legend: see projections.py; T steps, P pooled width, G modulations.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any, NoReturn

import torch
from diffusers.models.modeling_outputs import Transformer2DModelOutput
from torch import Tensor, nn

from dit4sr.acceleration.compiling import records_graphs
from dit4sr.acceleration.graphs import GraphedStep
from dit4sr.acceleration.modulations import Schedule
from dit4sr.acceleration.settings import AccelerationSettings
from dit4sr.acceleration.step_cache import BlockReuse
from dit4sr.acceleration.trunk import PatchEmbedding, Trunk
from dit4sr.errors import UserError
from dit4sr.models.attention_kernel import attention_kernel
from dit4sr.models.blocks import Grid
from dit4sr.models.dit4sr import check_latent_size
from dit4sr.models.precision import as_weights

SIZES_COMPILED = 10
"""Sizes that are compiled; further ones run uncompiled: torch allows a process a number of versions, then raises."""

logger = logging.getLogger(__name__)


class FastNetwork(nn.Module):
    """A network for inference.

    Args:
        config: of the trained network.
        settings: what was done to it.

    Attributes:
        warm_ups: seconds of the first call of each size, (B, C, H, W, with LR), where it is compiled or recorded.
    """

    scale: Tensor
    set_scale: float = 1.0  # s of the LR Injection as it was given; the baseline has none
    proj_out: Any

    def __init__(self, config: Any, settings: AccelerationSettings) -> None:
        super().__init__()
        self.config = config
        self.settings = settings
        self.reuse = None if settings.reuse_below is None else BlockReuse(settings.reuse_below)
        self.warm_ups: dict[tuple[Any, ...], float] = {}
        self.run: Callable[..., Tensor] = self._run

    # Called as the trained network

    def forward(
        self,
        hidden_states: Tensor,
        lr_hidden_states: Tensor | None = None,
        timestep: Tensor | None = None,
        encoder_hidden_states: Tensor | None = None,
        pooled_projections: Tensor | None = None,
        return_dict: bool = True,
    ) -> Tensor | Transformer2DModelOutput:
        """Predict the velocity, see :meth:`DiT4SRTransformer2DModel.forward`."""
        if timestep is None or encoder_hidden_states is None or pooled_projections is None:
            raise ValueError("timestep, encoder_hidden_states and pooled_projections are all needed")
        tokens, pooled = as_weights(self.weight, encoder_hidden_states, pooled_projections)
        modulation = torch.cat([trunk.modulations.at(timestep, pooled) for trunk in self.trunks], dim=-1)
        velocity = self.velocity(hidden_states, lr_hidden_states, timestep, self.prepare_text(tokens), modulation)
        return Transformer2DModelOutput(sample=velocity) if return_dict else velocity

    # Prepared for a sampling

    @property
    def prepares(self) -> bool:
        """Whether what no step changes is to be computed ahead: not where a hook of accelerate moves the weights to the
        GPU for each call (offloading), since it knows of calls alone."""
        return self.settings.cache and not hasattr(self, "_hf_hook")

    def begin(self) -> None:
        """A sampling begins: nothing of another one is used again."""
        if self.reuse is not None:
            self.reuse.forget()

    def prepare_text(self, tokens: Tensor) -> Tensor:
        """Text tokens (B, M, W) → C of every trunk, (B, M, D·trunks)."""
        (tokens,) = as_weights(self.weight, tokens)
        return torch.cat([trunk.embed_text(tokens) for trunk in self.trunks], dim=-1)

    def prepare_schedule(self, timesteps: Tensor, pooled: Tensor) -> Callable[[int], Tensor]:
        """Timesteps (T,) and pooled text (B, P) → step ↦ (B, G), what :meth:`velocity` takes as its modulation."""
        (pooled,) = as_weights(self.weight, pooled)
        schedules = [Schedule(trunk.modulations, timesteps, pooled) for trunk in self.trunks]
        return lambda step: torch.cat([schedule.at(step) for schedule in schedules], dim=-1)

    def prepare_lr(self, lr_latent: Tensor) -> Tensor:
        """The LR latent (B, C, H, W) → its tokens (B, K, D)."""
        (lr_latent,) = as_weights(self.weight, lr_latent)
        embed = self.lr_embed
        return embed(lr_latent, embed.position(self.grid_of(lr_latent)))

    def velocity(
        self,
        z: Tensor,
        lr: Tensor | None,
        timestep: Tensor,
        text: Tensor,
        modulation: Tensor,
        return_dict: bool = False,
    ) -> Tensor:
        """Predict the velocity from what was prepared.

        Args:
            z: noisy latent, (B, C, H, W).
            lr: the LR latent, (B, C, H, W); its tokens, (B, K, D), where each step of a sampling is one call; None
                switches the LR stream off.
            timestep: not looked at: the modulation says it.
            text: see :meth:`prepare_text`.
            modulation: of this step, see :meth:`prepare_schedule`.
            return_dict: not looked at; a tensor is returned.

        Returns:
            (B, C, H, W), in the weights' type.

        Raises:
            ValueError: for a latent size that the patch embedding cannot take, or where the LR latent's differs.
        """
        check_latent_size(z, self.config.patch_size, self.config.pos_embed_max_size)
        alone = lr is not None and lr.ndim == 3
        if lr is not None and not alone:
            if lr.shape != z.shape:
                raise ValueError(f"the LR latent is {tuple(lr.shape)}, the noisy one {tuple(z.shape)}")
            lr = self.prepare_lr(lr)
        (z,) = as_weights(self.weight, z)
        grid = self.grid_of(z)
        positions = [trunk.embed.position(grid) for trunk in self.trunks]
        s = self.settings
        for_any_s = s.compile != "none" or s.cuda_graphs or s.depth_wise == "kernel"
        arguments = z, lr, text, modulation, positions, self.scale if for_any_s else self.set_scale, grid
        # Triton launches on the current GPU.
        here = torch.cuda.device(z.device) if z.is_cuda else nullcontext()
        with here, attention_kernel(self.settings.attention, z.device):
            if self.reuse is not None:
                return self.run(*arguments, reuse=self.reuse if alone else None)
            if self.settings.compile == "none" and not self.settings.cuda_graphs:
                return self.run(*arguments)
            return self._ready(arguments)

    def _apply(self, *arguments: Any, **options: Any) -> Any:
        if isinstance(self.run, GraphedStep):
            self.run.forget()
        return super()._apply(*arguments, **options)

    def _ready(self, arguments: tuple[Any, ...]) -> Tensor:
        """A step of compiled or recorded code; how long the first of each size takes is kept and logged."""
        z, lr = arguments[0], arguments[1]
        key = (*z.shape, lr is not None)
        if key not in self.warm_ups and len(self.warm_ups) >= SIZES_COMPILED:
            with torch.compiler.set_stance("force_eager"):
                return self._run(*arguments)
        graphs = records_graphs(self.settings, z.device)
        if graphs:
            torch.compiler.cudagraph_mark_step_begin()
        began = time.perf_counter()
        velocity = self.run(*arguments)
        if key not in self.warm_ups:
            if z.device.type == "cuda":
                torch.cuda.synchronize(z.device)
            self.warm_ups[key] = time.perf_counter() - began
            logger.info("ready for latents of %s in %.1f s", "×".join(map(str, z.shape)), self.warm_ups[key])
        return velocity.clone() if graphs else velocity

    def _run(self, *arguments: Any) -> Tensor:
        raise NotImplementedError

    # What is asked of a network beside its velocity

    @property
    def trunks(self) -> list[Trunk]:
        """The transformers that it is made of."""
        raise NotImplementedError

    @property
    def lr_embed(self) -> PatchEmbedding:
        """What embeds the LR latent."""
        return self.trunks[0].embed

    @property
    def weight(self) -> Tensor:
        """Any weight, for its type and its place."""
        return self.proj_out.weight

    @property
    def dtype(self) -> torch.dtype:
        """The weights' type."""
        return self.weight.dtype

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.weight.device

    def grid_of(self, latent: Tensor) -> Grid:
        """The token grid of a latent."""
        patch = self.config.patch_size
        return latent.shape[-2] // patch, latent.shape[-1] // patch

    def unpatchify(self, image: Tensor, grid: Grid) -> Tensor:
        """(B, height·width, patch·patch·C) → (B, C, height·patch, width·patch)."""
        patch = self.config.patch_size
        image = image.unflatten(1, grid).unflatten(-1, (patch, patch, -1))
        return image.permute(0, 5, 1, 3, 2, 4).flatten(4, 5).flatten(2, 3)

    def save_pretrained(self, *args: Any, **kwargs: Any) -> NoReturn:
        """Refused: folded weights are no checkpoint."""
        raise UserError(
            "an accelerated network cannot be saved, its weights are folded: save or export the one it was made of "
            "(acceleration=none)"
        )

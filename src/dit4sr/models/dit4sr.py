"""The DiT4SR transformer (ICCV 2025): SD3.5's MM-DiT with an LR stream in every block."""

from __future__ import annotations

from typing import Any, Self

import torch
from diffusers import ConfigMixin, ModelMixin, SD3Transformer2DModel
from diffusers.configuration_utils import register_to_config
from diffusers.loaders import PeftAdapterMixin
from diffusers.models.embeddings import CombinedTimestepTextProjEmbeddings, PatchEmbed
from diffusers.models.modeling_outputs import Transformer2DModelOutput
from diffusers.models.normalization import AdaLayerNormContinuous
from torch import Tensor, nn

from dit4sr.models.blocks import LRStreamBlock
from dit4sr.models.initialisation import ControlInit, control_names, initialise_control
from dit4sr.models.precision import as_weights, computing
from dit4sr.models.spec import LRStreamSpec


def check_latent_size(latent: Tensor, patch_size: int, max_grid: int) -> None:
    """Refuse a latent (B, C, H, W) that the patch embedding cannot take.

    Raises:
        ValueError: where H or W is no multiple of the patch, or exceeds the positional table.
    """
    height, width = latent.shape[-2:]
    if height % patch_size or width % patch_size:
        raise ValueError(f"latent of {height}×{width}: height and width must be multiples of the patch, {patch_size}")
    if max(height, width) // patch_size > max_grid:
        raise ValueError(
            f"latent of {height}×{width}: at most {max_grid * patch_size} a side (positional table); use latent tiles"
        )


class DiT4SRTransformer2DModel(ModelMixin, ConfigMixin, PeftAdapterMixin):
    """Velocity network of DiT4SR and, by its four ``lr_*`` fields, of variants A–D.

    Parameter names are those of diffusers' ``SD3Transformer2DModel``, so base weights load
    with no renaming; the control weights are ``…to_{q,k,v,out}_control`` and ``…ff.control_*``.

    Args:
        sample_size … qk_norm: the fields of ``SD3Transformer2DModel``, with their meaning there.
        lr_attention, lr_residual, lr_injection, lr_key_source: see :class:`LRStreamSpec`.

    Attributes:
        lr_injection_scale: s of the LR Injection. 1 in training; the released weights were
            sampled with 1.2.
    """

    _supports_gradient_checkpointing = True
    _no_split_modules = ["LRStreamBlock"]
    _skip_layerwise_casting_patterns = ["pos_embed", "norm"]

    @register_to_config
    def __init__(
        self,
        sample_size: int = 128,
        patch_size: int = 2,
        in_channels: int = 16,
        num_layers: int = 18,
        attention_head_dim: int = 64,
        num_attention_heads: int = 18,
        joint_attention_dim: int = 4096,
        caption_projection_dim: int = 1152,
        pooled_projection_dim: int = 2048,
        out_channels: int | None = 16,
        pos_embed_max_size: int = 96,
        dual_attention_layers: tuple[int, ...] = (),
        qk_norm: str | None = None,
        lr_attention: str = "joint",
        lr_residual: bool = True,
        lr_injection: str = "conv",
        lr_key_source: str = "lr",
    ) -> None:
        super().__init__()
        self.spec = LRStreamSpec(
            attention=lr_attention,  # type: ignore[arg-type]
            residual=lr_residual,
            injection=lr_injection,  # type: ignore[arg-type]
            key_source=lr_key_source,  # type: ignore[arg-type]
        )
        self.lr_injection_scale = 1.0
        self.out_channels = out_channels if out_channels is not None else in_channels
        self.inner_dim = num_attention_heads * attention_head_dim

        self.pos_embed = PatchEmbed(
            height=sample_size,
            width=sample_size,
            patch_size=patch_size,
            in_channels=in_channels,
            embed_dim=self.inner_dim,
            pos_embed_max_size=pos_embed_max_size,
        )
        self.time_text_embed = CombinedTimestepTextProjEmbeddings(
            embedding_dim=self.inner_dim, pooled_projection_dim=pooled_projection_dim
        )
        self.context_embedder = nn.Linear(joint_attention_dim, caption_projection_dim)
        self.transformer_blocks = nn.ModuleList(
            LRStreamBlock(
                self.spec,
                dim=self.inner_dim,
                heads=num_attention_heads,
                qk_norm=qk_norm,
                dual_attention=i in dual_attention_layers,
                last=i == num_layers - 1,
            )
            for i in range(num_layers)
        )
        self.norm_out = AdaLayerNormContinuous(self.inner_dim, self.inner_dim, elementwise_affine=False, eps=1e-6)
        self.proj_out = nn.Linear(self.inner_dim, patch_size * patch_size * self.out_channels)
        self.gradient_checkpointing = False

    @classmethod
    def from_sd3(
        cls, transformer: SD3Transformer2DModel, spec: LRStreamSpec, *, control_init: ControlInit = "zero"
    ) -> Self:
        """Build the network on SD3 weights; only the control weights are new.

        The base's tensors are taken over, not copied, so no second copy of them is made (and a
        change to one shows in the other). The control weights are initialised afterwards.

        Args:
            transformer: diffusers' SD3 transformer; its config is left as it is.
            spec: the variant.
            control_init: ``zero`` for pretrained weights, ``identity`` for a base trained from scratch.

        Raises:
            ValueError: if any key beside the control weights is missing or unexpected.
        """
        config = {k: v for k, v in dict(transformer.config).items() if not k.startswith("_")}
        with torch.device("meta"):
            network = cls(**config, **spec.as_config())
        missing, unexpected = network.load_state_dict(transformer.state_dict(), strict=False, assign=True)
        wrong = sorted(set(missing) ^ set(control_names(list(network.state_dict()))))
        if wrong or unexpected:
            raise ValueError(f"not an SD3 transformer of this config: missing {wrong}, unexpected {sorted(unexpected)}")
        like = transformer.proj_out.weight
        if not like.is_meta:
            for name in missing:
                owner, _, leaf = name.rpartition(".")
                module = network.get_submodule(owner)
                empty = torch.empty_like(getattr(module, leaf), device=like.device, dtype=like.dtype)
                setattr(module, leaf, nn.Parameter(empty))
            initialise_control(network, control_init)
        return network.train(transformer.training)

    def control_parameter_names(self) -> list[str]:
        """Names of the control weights: all P, and the injection."""
        return control_names([n for n, _ in self.named_parameters()])

    def unreachable_parameter_names(self) -> list[str]:
        """Parameters on which no output of this specification depends; they cannot be trained."""
        prefixes = tuple(
            f"transformer_blocks.{i}.{name}."
            for i, block in enumerate(self.transformer_blocks)
            if isinstance(block, LRStreamBlock)
            for name in block.unreachable()
        )
        return [n for n, _ in self.named_parameters() if n.startswith(prefixes)]

    def forward(
        self,
        hidden_states: Tensor,
        lr_hidden_states: Tensor | None = None,
        timestep: Tensor | None = None,
        encoder_hidden_states: Tensor | None = None,
        pooled_projections: Tensor | None = None,
        return_dict: bool = True,
    ) -> Tensor | Transformer2DModelOutput:
        """Predict the velocity ε − z.

        Args:
            hidden_states: noisy latent z_t, (B, C, H, W); H and W any multiples of the patch.
            lr_hidden_states: LR latent of the same shape; None switches the LR stream off, and
                the network is then diffusers' SD3 transformer.
            timestep: 1000σ, (B,).
            encoder_hidden_states: text tokens, (B, M, joint_attention_dim).
            pooled_projections: (B, pooled_projection_dim). All but the timestep are cast to the weights' dtype.
            return_dict: wrap the result as diffusers does.

        Returns:
            (B, out_channels, H, W).

        Raises:
            ValueError: for a latent size that the patch embedding cannot take, or where the
                LR latent's shape differs.
        """
        if timestep is None or encoder_hidden_states is None or pooled_projections is None:
            raise ValueError("timestep, encoder_hidden_states and pooled_projections are all needed")
        patch = self.config.patch_size
        check_latent_size(hidden_states, patch, self.config.pos_embed_max_size)
        if lr_hidden_states is not None and lr_hidden_states.shape != hidden_states.shape:
            raise ValueError(
                f"the LR latent is {tuple(lr_hidden_states.shape)}, the noisy one {tuple(hidden_states.shape)}"
            )
        base, control = self.proj_out.weight, self._a_control_weight()
        with computing(hidden_states.device, base, control):
            z, lr, tokens, pooled = as_weights(
                base, hidden_states, lr_hidden_states, encoder_hidden_states, pooled_projections
            )
            velocity = self._velocity(z, lr, timestep, tokens, pooled)
        return Transformer2DModelOutput(sample=velocity) if return_dict else velocity

    def _a_control_weight(self) -> Any:
        block: Any = self.transformer_blocks[0]
        return block.attn.to_v_control.weight

    def _velocity(
        self, hidden_states: Tensor, lr_hidden_states: Tensor | None, timestep: Tensor, tokens: Tensor, pooled: Tensor
    ) -> Tensor:
        patch = self.config.patch_size
        grid = (hidden_states.shape[-2] // patch, hidden_states.shape[-1] // patch)
        image = self.pos_embed(hidden_states)
        streams = 1
        if lr_hidden_states is not None:
            image = torch.cat([image, self.pos_embed(lr_hidden_states)], dim=1)
            streams = 2
        temb = self.time_text_embed(timestep, pooled)
        text = self.context_embedder(tokens)

        for block in self.transformer_blocks:
            arguments: tuple[Any, ...] = (image, text, temb, streams, grid, self.lr_injection_scale)
            if torch.is_grad_enabled() and self.gradient_checkpointing:
                image, text = self._gradient_checkpointing_func(block, *arguments)
            else:
                image, text = block(*arguments)

        image = self.proj_out(self.norm_out(image, temb))
        # (B, height·width, patch·patch·C) → (B, C, height·patch, width·patch)
        image = image.unflatten(1, grid).unflatten(-1, (patch, patch, self.out_channels))
        return image.permute(0, 5, 1, 3, 2, 4).reshape(
            image.shape[0], self.out_channels, grid[0] * patch, grid[1] * patch
        )

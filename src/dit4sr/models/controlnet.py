"""The SD3-ControlNet baseline behind the same call as DiT4SR (arXiv 2302.05543 on SD3, arXiv 2403.03206)."""

from __future__ import annotations

import copy
from typing import Self

import torch
from diffusers import ConfigMixin, ModelMixin, SD3ControlNetModel, SD3Transformer2DModel
from diffusers.configuration_utils import register_to_config
from diffusers.models.modeling_outputs import Transformer2DModelOutput
from torch import Tensor, nn

from dit4sr.models.dit4sr import check_latent_size
from dit4sr.models.precision import as_weights, computing


class SD3ControlNet(ModelMixin, ConfigMixin):
    """Diffusers' SD3 transformer with diffusers' SD3 ControlNet, the LR latent as its condition.

    The ControlNet has the first ceil(N/2) of the transformer's N blocks; its residual i is
    added after the transformer's blocks 2i and 2i+1, but not after the last one, whose text
    stream ends.

    Args:
        sample_size … qk_norm: the fields of ``SD3Transformer2DModel``.
    """

    _supports_gradient_checkpointing = True
    _no_split_modules = ["JointTransformerBlock"]

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
    ) -> None:
        super().__init__()
        # Both constructors get plain copies of the fields: diffusers' own `from_transformer`
        # changes num_layers in the transformer's config.
        fields = {k: copy.copy(v) for k, v in dict(self.config).items() if not k.startswith("_")}
        depth = -(-num_layers // 2)
        self.transformer = SD3Transformer2DModel(**fields)
        self.controlnet = SD3ControlNetModel(
            **{
                **fields,
                "num_layers": depth,
                "dual_attention_layers": tuple(i for i in dual_attention_layers if i < depth),
                "extra_conditioning_channels": 0,
            }
        )

    @classmethod
    def from_sd3(cls, transformer: SD3Transformer2DModel) -> Self:
        """Build the baseline on SD3 weights.

        The transformer's tensors are taken over; the ControlNet's are copies of them, but for
        its zero-initialised output maps and condition embedding.

        Raises:
            ValueError: if the transformer's keys do not fit its config.
        """
        config = {k: v for k, v in dict(transformer.config).items() if not k.startswith("_")}
        like = transformer.proj_out.weight
        with torch.device("meta"):
            network = cls(**config)
        try:
            network.transformer.load_state_dict(transformer.state_dict(), strict=True, assign=True)
        except RuntimeError as error:
            raise ValueError(f"not an SD3 transformer of this config: {error}") from error
        if not like.is_meta:
            # nn.Module's own `to`: that of diffusers warns about layers kept in float32, of which
            # there are none.
            nn.Module.to(network.controlnet.to_empty(device=like.device), dtype=like.dtype)
            network._start_controlnet()
        return network.train(transformer.training)

    @torch.no_grad()
    def _start_controlnet(self) -> None:
        """Copy what the ControlNet shares with the transformer; zero the rest."""
        source = self.transformer.state_dict()
        for name, value in self.controlnet.state_dict().items():
            if name.startswith(("controlnet_blocks.", "pos_embed_input.")):
                value.zero_()
            elif name in source and source[name].shape == value.shape:
                value.copy_(source[name])
            else:
                # Only where N = 1: the transformer's only block is also its last, and has no
                # text MLP to copy.
                raise ValueError(f"the transformer has no {name} to copy: SD3-ControlNet needs at least two blocks")

    def control_parameter_names(self) -> list[str]:
        """Names of the trainable part on a pretrained base: the ControlNet."""
        return [n for n, _ in self.named_parameters() if n.startswith("controlnet.")]

    def unreachable_parameter_names(self) -> list[str]:
        """Parameters on which no output depends: where a text stream ends, and unread residuals."""
        blocks, layers = len(self.controlnet.transformer_blocks), self.config.num_layers
        read = [i for i in range(blocks) if 2 * i < layers - 1]
        prefixes = [f"transformer.transformer_blocks.{layers - 1}.attn.{n}." for n in ("add_q_proj", "norm_added_q")]
        for i in range(blocks):
            block = f"controlnet.transformer_blocks.{i}."
            if i not in read:
                prefixes += [block, f"controlnet.controlnet_blocks.{i}."]
            elif i == read[-1]:
                prefixes += [
                    block + n for n in ("attn.add_q_proj.", "attn.norm_added_q.", "attn.to_add_out.", "ff_context.")
                ]
        return [n for n, _ in self.named_parameters() if n.startswith(tuple(prefixes))]

    def forward(
        self,
        hidden_states: Tensor,
        lr_hidden_states: Tensor | None = None,
        timestep: Tensor | None = None,
        encoder_hidden_states: Tensor | None = None,
        pooled_projections: Tensor | None = None,
        return_dict: bool = True,
    ) -> Tensor | Transformer2DModelOutput:
        """Predict the velocity ε − z; arguments as for :class:`DiT4SRTransformer2DModel`."""
        check_latent_size(hidden_states, self.config.patch_size, self.config.pos_embed_max_size)
        if lr_hidden_states is not None and lr_hidden_states.shape != hidden_states.shape:
            raise ValueError(
                f"the LR latent is {tuple(lr_hidden_states.shape)}, the noisy one {tuple(hidden_states.shape)}"
            )
        base, control = self.transformer.proj_out.weight, self.controlnet.context_embedder.weight
        with computing(hidden_states.device, base, control):
            z, lr, tokens, pooled = as_weights(
                base, hidden_states, lr_hidden_states, encoder_hidden_states, pooled_projections
            )
            text = {"timestep": timestep, "encoder_hidden_states": tokens, "pooled_projections": pooled}
            residuals = None
            if lr is not None:
                (residuals,) = self.controlnet(hidden_states=z, controlnet_cond=lr, **text, return_dict=False)
            (velocity,) = self.transformer(
                hidden_states=z, block_controlnet_hidden_states=residuals, **text, return_dict=False
            )
        return Transformer2DModelOutput(sample=velocity) if return_dict else velocity

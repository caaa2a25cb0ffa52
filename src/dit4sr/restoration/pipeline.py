"""Restoration as a diffusers pipeline: hub, safetensors, offloading and schedulers work as in any other."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from typing import Any, Literal, Self

import torch
from diffusers import (
    AutoencoderKL,
    AutoencoderTiny,
    DiffusionPipeline,
    FlowMatchEulerDiscreteScheduler,
    SD3Transformer2DModel,
)
from diffusers.pipelines.pipeline_utils import ImagePipelineOutput
from diffusers.utils import logging
from torch import Tensor
from transformers import CLIPTextModelWithProjection, T5EncoderModel

from dit4sr.acceleration import AccelerationSettings, accelerate
from dit4sr.acceleration.autoencoder import accelerate_autoencoder
from dit4sr.acceleration.network import FastNetwork
from dit4sr.autoencoders import Autoencoder, BlockDCT, DiffusersAutoencoder
from dit4sr.errors import UserError
from dit4sr.models import DiT4SRTransformer2DModel, LRStreamSpec, SD3ControlNet
from dit4sr.prompts import HashingTextEncoder, TextEmbedding
from dit4sr.restoration.components import HashingTextModel
from dit4sr.restoration.conditions import conditions_of
from dit4sr.restoration.defaults import published_sampler, published_tile
from dit4sr.restoration.image_io import OUTPUT_TYPES, ImageInput, from_tensor, gather, one_each, runs, to_tensors
from dit4sr.restoration.restorer import Restorer, largest_side
from dit4sr.restoration.restoring import (
    Conditions,
    Plan,
    SamplerSettings,
    decode_restored,
    encode_lr,
    noise_of,
    sample,
    target_size,
)
from dit4sr.restoration.upsampling import Upsampled
from dit4sr.sampling import TRAIN_TIMESTEPS, sampling_sigmas
from dit4sr.tiles import TileSettings, check_tile

logger = logging.get_logger(__name__)

PUBLISHED_SPEC = LRStreamSpec(attention="joint", residual=True, injection="conv", key_source="lr")

OTHER_SIGMAS = (
    "use_dynamic_shifting",
    "use_karras_sigmas",
    "use_exponential_sigmas",
    "use_beta_sigmas",
    "invert_sigmas",
    "stochastic_sampling",
    "shift_terminal",
)
"""Switches of FlowMatchEulerDiscreteScheduler by which its σ, or its steps, are others."""

StepEnd = Callable[["DiT4SRPipeline", int, Tensor, dict[str, Tensor]], dict[str, Tensor] | None]
"""``callback_on_step_end(pipe, step, timestep, {"latents": …})``; what it returns under these names replaces them."""


class DiT4SRPipeline(DiffusionPipeline):
    """Restore images with DiT4SR, one of its variants or the SD3-ControlNet baseline.

    Args:
        transformer: the velocity network. A plain SD3 transformer gets an LR stream that is not trained yet.
        vae: images to latents and back.
        scheduler: diffusers' FlowMatchEulerDiscreteScheduler, whose ``shift`` counts here; or another of flow matching.
        text_encoder, text_encoder_2, tokenizer, tokenizer_2: CLIP-L and OpenCLIP-G; for the small backbones
            ``text_encoder`` is a :class:`HashingTextModel` and there are no others. Without any, pass embeddings.
        text_encoder_3, tokenizer_3: T5; without it its tokens are zeros.
        sampler: what a call does not say, the fields of configs/sampler; None for the published sampling.
        tile: side and overlap of latent tiles, ``size`` and ``overlap``; ``size`` is also what the network was
            trained on, to which smaller images are padded. None for the published ones.
        lr_injection_scale: sets the network's; None leaves it.

    Raises:
        UserError: for settings that cannot be sampled with.
    """

    model_cpu_offload_seq = "text_encoder->text_encoder_2->text_encoder_3->transformer->vae"
    _optional_components = [
        "text_encoder",
        "text_encoder_2",
        "text_encoder_3",
        "tokenizer",
        "tokenizer_2",
        "tokenizer_3",
    ]
    _callback_tensor_inputs = ["latents"]

    def __init__(
        self,
        transformer: DiT4SRTransformer2DModel | SD3ControlNet | SD3Transformer2DModel,
        vae: AutoencoderKL | AutoencoderTiny | BlockDCT,
        scheduler: Any,
        text_encoder: CLIPTextModelWithProjection | HashingTextModel | None = None,
        text_encoder_2: CLIPTextModelWithProjection | None = None,
        text_encoder_3: T5EncoderModel | None = None,
        tokenizer: Any = None,
        tokenizer_2: Any = None,
        tokenizer_3: Any = None,
        sampler: dict[str, Any] | None = None,
        tile: dict[str, int] | None = None,
        lr_injection_scale: float | None = None,
    ) -> None:
        super().__init__()
        if isinstance(transformer, SD3Transformer2DModel):
            logger.warning(
                "this transformer has no LR stream: one is added that is not trained, so nothing is restored before "
                "its weights are loaded (or pass transformer=DiT4SRTransformer2DModel.from_pretrained(…))"
            )
            transformer = DiT4SRTransformer2DModel.from_sd3(transformer, PUBLISHED_SPEC)
        if isinstance(text_encoder, HashingTextEncoder):
            text_encoder = HashingTextModel(text_encoder.tokens, text_encoder.width, text_encoder.pooled_width)
        if isinstance(vae, DiffusersAutoencoder):
            vae = vae.model
        self.register_modules(
            transformer=transformer,
            vae=vae,
            scheduler=scheduler,
            text_encoder=text_encoder,
            text_encoder_2=text_encoder_2,
            text_encoder_3=text_encoder_3,
            tokenizer=tokenizer,
            tokenizer_2=tokenizer_2,
            tokenizer_3=tokenizer_3,
        )
        settings = SamplerSettings.from_config(published_sampler() if sampler is None else sampler)
        sides = TileSettings(**(published_tile() if tile is None else tile))
        self.register_to_config(sampler=asdict(settings), tile=asdict(sides), lr_injection_scale=lr_injection_scale)
        if lr_injection_scale is not None:
            self._set_injection_scale(lr_injection_scale)
        self._vae_tile: TileSettings | None = sides
        self._vae_at_once: int | None = None
        self._interrupt = False

    @classmethod
    def from_restorer(cls, restorer: Restorer) -> Self:
        """The pipeline of a checkpoint that the verbs have loaded, with its sampler and tiles.

        Text encoders of Stable Diffusion are not taken along: pass embeddings, or export the checkpoint and load that.
        """
        encoder: Any = restorer.text_encoder
        parts: dict[str, Any] = {"transformer": restorer.network, "vae": restorer.autoencoder}
        return cls(
            **parts,
            scheduler=FlowMatchEulerDiscreteScheduler(shift=restorer.sampler.shift),
            text_encoder=encoder if isinstance(encoder, HashingTextEncoder) else None,
            sampler=asdict(restorer.sampler),
            tile=asdict(restorer.tile),
        )

    def save_pretrained(self, save_directory: Any, *args: Any, **kwargs: Any) -> None:
        """Write a folder that :meth:`from_pretrained` reads, see ``DiffusionPipeline.save_pretrained``."""
        if isinstance(self.transformer, FastNetwork):
            self.transformer.save_pretrained(save_directory)  # refuses, where diffusers would leave it out
        # An attribute of the network, of which the network's own config knows nothing.
        self.register_to_config(lr_injection_scale=getattr(self.transformer, "lr_injection_scale", None))
        super().save_pretrained(save_directory, *args, **kwargs)

    def accelerate(self, settings: AccelerationSettings | str = "exact") -> None:
        """Make the transformer and the autoencoder faster, in place; see docs/speed.md. Do so on the device, and
        before offloading is switched on; a pipeline made faster cannot be saved.

        Args:
            settings: a name of configs/acceleration, or settings.

        Raises:
            UserError: for an unknown name, or where a package, a compiler or a kind of GPU is missing.
        """
        if isinstance(settings, str):
            settings = AccelerationSettings.named(settings)
        if settings.tiny_vae is not None:
            raise UserError("acceleration.tiny_vae: give the pipeline the tiny autoencoder itself (vae=…)")
        self.register_modules(transformer=accelerate(self.transformer, settings))
        accelerate_autoencoder(self._coder, settings, self.transformer.device)

    # Tiles of the autoencoder

    def enable_vae_tiling(self, size: int | None = None, overlap: int | None = None) -> None:
        """Encode and decode in tiles; that is how a pipeline starts, with the tiles of the network.

        Args:
            size, overlap: in latent pixels; None for the network's.

        Raises:
            UserError: unless 0 ≤ overlap < size.
        """
        own = self._tile(size, overlap)
        self._vae_tile = check_tile(own)

    def disable_vae_tiling(self) -> None:
        """Encode and decode images of any size in one piece: memory then grows with the image."""
        self._vae_tile = None

    def enable_vae_slicing(self) -> None:
        """Encode and decode the images of a batch one after the other."""
        self._vae_at_once = 1

    def disable_vae_slicing(self) -> None:
        """Encode and decode as many images at once as tiles are sampled at once; that is how a pipeline starts."""
        self._vae_at_once = None

    # Prompts

    def encode_prompt(
        self,
        prompt: Sequence[str],
        negative_prompt: Sequence[str] | None,
        *,
        device: torch.device | None = None,
        max_sequence_length: int = 77,
    ) -> tuple[Tensor, Tensor | None, Tensor, Tensor | None]:
        """Embed prompts, and negative prompts unless None.

        Args:
            prompt, negative_prompt: B of each, as they are: no suffix is added.
            device: where to; None for the pipeline's.
            max_sequence_length: tokens of T5, which follow the 77 of CLIP.

        Returns:
            In diffusers' order: ``prompt_embeds`` (B, M, W), ``negative_prompt_embeds``, ``pooled_prompt_embeds``
            (B, P) and ``negative_pooled_prompt_embeds``; the negative ones are None without a negative prompt.

        Raises:
            UserError: where the pipeline has no text encoder.
        """
        text = self._encode(list(prompt), device, max_sequence_length)
        if negative_prompt is None:
            return text.tokens, None, text.pooled, None
        negative = self._encode(list(negative_prompt), device, max_sequence_length)
        return text.tokens, negative.tokens, text.pooled, negative.pooled

    def _encode(self, prompts: list[str], device: torch.device | None, t5_tokens: int) -> TextEmbedding:
        device = device or self._execution_device
        if isinstance(self.text_encoder, HashingTextModel):
            return self.text_encoder.encode(prompts).to(device)
        if self.text_encoder is None or self.text_encoder_2 is None:
            raise UserError("this pipeline has no text encoder: pass prompt_embeds and pooled_prompt_embeds")
        from dit4sr.prompts.sd3 import encode_sd3

        tokenizers = [self.tokenizer, self.tokenizer_2]
        return encode_sd3(
            prompts,
            clip_tokenizers=tokenizers,
            clips=[self.text_encoder, self.text_encoder_2],
            t5_tokenizer=self.tokenizer_3,
            t5=self.text_encoder_3,
            clip_tokens=min(77, *(tokenizer.model_max_length for tokenizer in tokenizers)),
            t5_tokens=t5_tokens,
            width=self.transformer.config.joint_attention_dim,
            device=device,
        ).to(device)

    # Restoring

    @property
    def interrupt(self) -> bool:
        """Set ``pipe._interrupt = True`` (in the callback) to stop after the step."""
        return self._interrupt

    @torch.no_grad()
    def __call__(
        self,
        image: ImageInput,
        prompt: str | Sequence[str] | None = None,
        negative_prompt: str | Sequence[str] | None = None,
        height: int | None = None,
        width: int | None = None,
        upscale: float = 4.0,
        num_inference_steps: int | None = None,
        guidance_scale: float | None = None,
        start: Literal["noise", "lr"] | None = None,
        first_sigma: float | None = None,
        num_images_per_prompt: int = 1,
        generator: torch.Generator | Sequence[torch.Generator] | None = None,
        latents: Tensor | None = None,
        prompt_embeds: Tensor | None = None,
        negative_prompt_embeds: Tensor | None = None,
        pooled_prompt_embeds: Tensor | None = None,
        negative_pooled_prompt_embeds: Tensor | None = None,
        prompt_suffix: str | None = None,
        max_sequence_length: int = 77,
        colour: str | None = None,
        tile_size: int | None = None,
        tile_overlap: int | None = None,
        tile_batch: int | None = None,
        lr_injection_scale: float | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
        callback_on_step_end: StepEnd | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = ("latents",),
    ) -> ImagePipelineOutput | tuple[Any]:
        """Restore images; what is None is as the pipeline's ``sampler`` and ``tile`` say.

        Args:
            image: one or more, see :data:`dit4sr.restoration.image_io.ImageInput`; sizes may differ.
            prompt: what the images show, one for all or one an image; None is the null prompt.
            negative_prompt: of guidance, one for all or one an image.
            height, width: of the results, both or neither, at least the input's; they count before ``upscale``.
            upscale: factor of the sides, at least 1; they are rounded to whole pixels.
            num_inference_steps: steps of the scheduler.
            guidance_scale: w of classifier-free guidance; 1 switches it off.
            start, first_sigma: see :func:`dit4sr.sampling.sample_euler`.
            num_images_per_prompt: results of each image, one after the other; each has noise of its own.
            generator: of the noise; in a list one a result, so that company and order do not matter.
            latents: the starting noise, (results, C, h, w) with the sides of the padded latent; for one size only.
            prompt_embeds, pooled_prompt_embeds and their negatives: in place of prompts, see :meth:`encode_prompt`.
            prompt_suffix: added to every prompt.
            max_sequence_length: tokens of T5.
            colour: none, adain or wavelet: align colours to the upsampled input.
            tile_size, tile_overlap: of latent tiles, in latent pixels.
            tile_batch: tiles of one forward pass, which bounds the memory.
            lr_injection_scale: s of the LR Injection, for this call.
            output_type: pil, np ((H, W, 3) float32 in [0, 1]), pt ((3, H, W)) or latent; np and pt are stacked
                where all results are of one size.
            return_dict: an object with ``images``, else a tuple.
            callback_on_step_end: see :data:`StepEnd`.
            callback_on_step_end_tensor_inputs: names of what it is given: latents.

        Raises:
            UserError: for anything that cannot be restored as asked, before anything is computed.
        """
        settings = self._settings(
            steps=num_inference_steps,
            guidance=guidance_scale,
            start=start,
            first_sigma=first_sigma,
            positive_suffix=prompt_suffix,
            tile_batch=tile_batch,
            colour=colour,
        )
        patch = self.transformer.config.patch_size
        tile = check_tile(self._tile(tile_size, tile_overlap), patch, largest_side(self.transformer))
        if output_type not in OUTPUT_TYPES:
            raise UserError(f"output_type={output_type!r}: choose one of {', '.join(OUTPUT_TYPES)}")
        if unknown := sorted(set(callback_on_step_end_tensor_inputs) - set(self._callback_tensor_inputs)):
            raise UserError(f"callback_on_step_end_tensor_inputs: {', '.join(unknown)}: only latents can be had")
        if num_images_per_prompt < 1:
            raise UserError(f"num_images_per_prompt={num_images_per_prompt}: at least one")
        inputs = to_tensors(image)
        sizes = [self._target(one, height, width, upscale) for one in inputs]
        generators = one_each(generator, len(inputs) * num_images_per_prompt)

        device = self._execution_device
        conditions = conditions_of(
            len(inputs),
            (prompt, negative_prompt),
            (prompt_embeds, pooled_prompt_embeds, negative_prompt_embeds, negative_pooled_prompt_embeds),
            settings,
            lambda prompts: self._encode(prompts, device, max_sequence_length),
            device,
        )
        images = [one for one in inputs for _ in range(num_images_per_prompt)]
        sizes = [size for size in sizes for _ in range(num_images_per_prompt)]
        repeats = torch.arange(len(inputs), device=device).repeat_interleave(num_images_per_prompt)
        batches = runs(images, settings.tile_batch)
        if latents is not None and len({image.shape for image in images}) > 1:
            raise UserError("latents belong to images of one size: restore other sizes in calls of their own")

        before = getattr(self.transformer, "lr_injection_scale", None)
        if lr_injection_scale is not None:
            self._set_injection_scale(lr_injection_scale)
        self._interrupt = False
        results: list[Any] = []
        try:
            with self.progress_bar(total=settings.steps * len(batches)) as bar:
                after_step = self._after_step(settings, bar, callback_on_step_end)
                for batch in batches:
                    lq = torch.stack(images[batch]).to(device)
                    plan = Plan(Upsampled(lq, *sizes[batch.start]), self._coder.scale, patch, self.config.tile["size"])
                    which = repeats[batch]
                    text = TextEmbedding(conditions.text.tokens[which], conditions.text.pooled[which])
                    negative = conditions.negative
                    if negative is not None:
                        negative = TextEmbedding(negative.tokens[which], negative.pooled[which])
                    latent = self._sample(
                        plan,
                        None if latents is None else latents[batch],
                        None if generators is None else generators[batch],
                        Conditions(text, negative),
                        settings,
                        tile,
                        after_step,
                    )
                    if output_type == "latent":
                        results += list(latent)
                        continue
                    at_once = self._vae_at_once or settings.tile_batch
                    restored = decode_restored(
                        plan, self._coder, latent, self._vae_tiles(latent), at_once, settings.colour
                    )
                    results += [from_tensor(one, output_type) for one in restored]
        finally:
            if lr_injection_scale is not None:
                self.transformer.lr_injection_scale = before
            self.maybe_free_model_hooks()
        gathered = gather(results, output_type)
        return ImagePipelineOutput(images=gathered) if return_dict else (gathered,)

    def _sample(
        self,
        plan: Plan,
        noise: Tensor | None,
        generators: Sequence[torch.Generator] | None,
        conditions: Conditions,
        settings: SamplerSettings,
        tile: TileSettings,
        after_step: Callable[[int, Tensor], Tensor | None],
    ) -> Tensor:
        """The restored latent of one batch of images of one size."""
        coder, lq = self._coder, plan.upsampled.lq
        shape = (len(lq), coder.channels, *plan.latent_size)
        if noise is not None and tuple(noise.shape) != shape:
            raise UserError(f"latents of shape {tuple(noise.shape)}: these images need {shape}")
        # The posterior is sampled, as in training; but noise that is given stands for all of it.
        sampled = coder.has_posterior and (noise is None or generators is not None)
        if generators is None:
            generators = [torch.default_generator] * len(lq)
        noise = noise_of(generators, shape[1:], lq.device) if noise is None else noise.to(lq.device, torch.float32)
        of_posterior = noise_of(generators, shape[1:], lq.device) if sampled else None
        at_once = self._vae_at_once or settings.tile_batch
        lr_latent = encode_lr(plan, coder, self._vae_tiles(noise), at_once, of_posterior)
        del of_posterior
        return sample(
            self.transformer,
            lr_latent,
            noise,
            conditions,
            settings,
            tile,
            scheduler=None if self._is_plain_euler else self.scheduler,
            callback=after_step,
            interrupted=lambda: self._interrupt,
        )

    def _settings(self, **changes: Any) -> SamplerSettings:
        given = {name: value for name, value in changes.items() if value is not None}
        settings = replace(SamplerSettings(**self.config.sampler), **given)
        if self._is_plain_euler:
            settings = replace(settings, shift=self.scheduler.shift)
        if settings.start == "lr" and "start" in given and "first_sigma" not in given and settings.first_sigma == 1:
            logger.warning("start=lr with first_sigma=1 is start=noise: nothing is left of the LR latent")
        settings.check()
        return settings

    def _tile(self, size: int | None, overlap: int | None) -> TileSettings:
        """The tile asked for; an overlap that is not said keeps its share of the side."""
        own = TileSettings(**self.config.tile)
        if size is not None and overlap is None:
            overlap = own.overlap * size // own.size
        return TileSettings(own.size if size is None else size, own.overlap if overlap is None else overlap)

    def _vae_tiles(self, latent: Tensor) -> TileSettings:
        return self._vae_tile or TileSettings(max(latent.shape[-2:]), 0)

    def _target(self, image: Tensor, height: int | None, width: int | None, upscale: float) -> tuple[int, int]:
        h, w = image.shape[-2:]
        if height is None and width is None:
            return target_size(h, w, upscale)
        if height is None or width is None:
            raise UserError("give both height and width, or neither")
        if height < h or width < w:
            raise UserError(f"{width}×{height} is smaller than the image, {w}×{h}: images are restored, not shrunk")
        return height, width

    def _after_step(
        self, settings: SamplerSettings, bar: Any, callback: StepEnd | None
    ) -> Callable[[int, Tensor], Tensor | None]:
        sigmas = sampling_sigmas(settings.steps, settings.shift, settings.first_sigma)

        def after_step(step: int, z: Tensor) -> Tensor | None:
            bar.update()
            if callback is None:
                return None
            timesteps = sigmas * TRAIN_TIMESTEPS if self._is_plain_euler else self.scheduler.timesteps
            changed = callback(self, step, timesteps[step].float(), {"latents": z})
            return None if not changed else changed.get("latents")

        return after_step

    @property
    def _coder(self) -> Autoencoder:
        return self.vae if isinstance(self.vae, BlockDCT) else DiffusersAutoencoder(self.vae)

    @property
    def _is_plain_euler(self) -> bool:
        """Whether the scheduler is the one that :func:`dit4sr.sampling.sampling_sigmas` reproduces."""
        config = self.scheduler.config
        return (
            type(self.scheduler) is FlowMatchEulerDiscreteScheduler
            and config.num_train_timesteps == TRAIN_TIMESTEPS
            and not any(config.get(name) for name in OTHER_SIGMAS)
        )

    def _set_injection_scale(self, scale: float) -> None:
        if not hasattr(self.transformer, "lr_injection_scale"):
            raise UserError(f"lr_injection_scale={scale}: {type(self.transformer).__name__} has no LR Injection")
        self.transformer.lr_injection_scale = scale

"""Restoration as a diffusers pipeline: hub, safetensors, offloading and schedulers work as in any other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
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
from torch import Tensor
from transformers import CLIPTextModelWithProjection, T5EncoderModel

from dit4sr.acceleration import AccelerationSettings, accelerate
from dit4sr.acceleration.autoencoder import accelerate_autoencoder
from dit4sr.acceleration.network import FastNetwork
from dit4sr.autoencoders import Autoencoder, BlockDCT, DiffusersAutoencoder
from dit4sr.errors import UserError
from dit4sr.models import DiT4SRTransformer2DModel, SD3ControlNet
from dit4sr.prompts import HashingTextEncoder
from dit4sr.restoration.calls import StepEnd, after_each_step, is_plain_euler, settings_of_call, size_of_call
from dit4sr.restoration.components import HashingTextModel, as_component, with_lr_stream
from dit4sr.restoration.conditions import conditions_of
from dit4sr.restoration.decoding import decode_restored
from dit4sr.restoration.defaults import published_sampler, published_tile
from dit4sr.restoration.image_io import OUTPUT_TYPES, ImageInput, gather, images_of, one_each, runs, to_tensors
from dit4sr.restoration.latents import restored_latent
from dit4sr.restoration.prompt_encoding import PromptEncoding
from dit4sr.restoration.restorer import Restorer, largest_side
from dit4sr.restoration.restoring import Plan
from dit4sr.restoration.sampler_settings import SamplerSettings
from dit4sr.restoration.upsampling import Upsampled
from dit4sr.restoration.vae_tiling import VaeTiling
from dit4sr.tiles import TileSettings, check_tile
from dit4sr.values import number


class DiT4SRPipeline(PromptEncoding, VaeTiling, DiffusionPipeline):
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
    _optional_components = [f"{part}{n}" for part in ("text_encoder", "tokenizer") for n in ("", "_2", "_3")]
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
        self.register_modules(
            transformer=with_lr_stream(transformer),
            vae=vae.model if isinstance(vae, DiffusersAutoencoder) else vae,
            scheduler=scheduler,
            text_encoder=as_component(text_encoder),
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
        self._vae_tile = sides
        self._interrupt = False

    @classmethod
    def from_restorer(cls, restorer: Restorer) -> Self:
        """The pipeline of a checkpoint that the verbs have loaded, with its sampler and tiles.

        Text encoders of Stable Diffusion are not taken along: pass embeddings, or export the checkpoint and load that.
        """
        encoder: Any = restorer.text_encoder
        while hasattr(encoder, "encoder"):  # behind a cache, or embeddings made ahead
            encoder = encoder.encoder
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
        changes = {
            "steps": num_inference_steps,
            "guidance": guidance_scale,
            "start": start,
            "first_sigma": first_sigma,
            "positive_suffix": prompt_suffix,
            "tile_batch": tile_batch,
            "colour": colour,
        }
        settings = settings_of_call(self.config.sampler, self.scheduler, changes)
        patch = self.transformer.config.patch_size
        tile = check_tile(self._tile(tile_size, tile_overlap), patch, largest_side(self.transformer))
        if output_type not in OUTPUT_TYPES:
            raise UserError(f"output_type={output_type!r}: choose one of {', '.join(OUTPUT_TYPES)}")
        if unknown := sorted(set(callback_on_step_end_tensor_inputs) - set(self._callback_tensor_inputs)):
            raise UserError(f"callback_on_step_end_tensor_inputs: {', '.join(unknown)}: only latents can be had")
        if num_images_per_prompt < 1:
            raise UserError(f"num_images_per_prompt={num_images_per_prompt}: at least one")
        inputs = to_tensors(image)
        sizes = [size_of_call(one, height, width, upscale) for one in inputs]
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
                after_step = after_each_step(self, settings, bar, callback_on_step_end)
                for batch in batches:
                    lq = torch.stack(images[batch]).to(device)
                    plan = Plan(Upsampled(lq, *sizes[batch.start]), self._coder.scale, patch, self.config.tile["size"])
                    at_once = self._vae_at_once or settings.tile_batch
                    latent = restored_latent(
                        self.transformer,
                        self._coder,
                        plan,
                        None if latents is None else latents[batch],
                        None if generators is None else generators[batch],
                        conditions.of(repeats[batch]),
                        settings,
                        tile,
                        self._vae_tiles,
                        at_once,
                        scheduler=None if is_plain_euler(self.scheduler) else self.scheduler,
                        callback=after_step,
                        interrupted=lambda: self._interrupt,
                    )
                    if output_type == "latent":
                        results += list(latent)
                        continue
                    strips = decode_restored(
                        plan, self._coder, latent, self._vae_tiles(latent), at_once, settings.colour
                    )
                    results += images_of(strips, plan, output_type)
        finally:
            if lr_injection_scale is not None:
                self.transformer.lr_injection_scale = before
            self.maybe_free_model_hooks()
        gathered = gather(results, output_type)
        return ImagePipelineOutput(images=gathered) if return_dict else (gathered,)

    @property
    def _coder(self) -> Autoencoder:
        return self.vae if isinstance(self.vae, BlockDCT) else DiffusersAutoencoder(self.vae)

    def _set_injection_scale(self, scale: float) -> None:
        if not hasattr(self.transformer, "lr_injection_scale"):
            raise UserError(f"lr_injection_scale={scale}: {type(self.transformer).__name__} has no LR Injection")
        number({"lr_injection_scale": scale}, "lr_injection_scale")
        self.transformer.lr_injection_scale = scale

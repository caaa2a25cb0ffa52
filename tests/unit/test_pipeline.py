"""The diffusers pipeline: images in and out, reproducibility, round trips, schedulers, offloading."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import (
    DDIMScheduler,
    FlowMatchEulerDiscreteScheduler,
    FlowMatchHeunDiscreteScheduler,
)
from PIL import Image
from tiny_checkpoint import picture
from tiny_sd3 import randomise, tiny_controlnet, tiny_network
from tiny_sd3_folder import write_tiny_sd3

from dit4sr.autoencoders import BlockDCT
from dit4sr.errors import UserError
from dit4sr.prompts import HashingTextEncoder
from dit4sr.restoration.defaults import published_sampler, published_tile
from dit4sr.restoration.pipeline import DiT4SRPipeline
from dit4sr.restoration.restorer import Restorer, TileSettings
from dit4sr.restoration.sampler_settings import SamplerSettings

SAMPLER = {**published_sampler(), "steps": 2, "guidance": 2.0}
TILE = {"size": 8, "overlap": 2}


def nano(network: Any = None, **sampler: Any) -> DiT4SRPipeline:
    """A pipeline of the embedded default's parts, with 16 latent channels of BlockDCT."""
    pipe = DiT4SRPipeline(
        transformer=network or tiny_network(in_channels=16, out_channels=16),
        vae=BlockDCT(),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        text_encoder=HashingTextEncoder(5, 12, 10),
        sampler={**SAMPLER, **sampler},
        tile=TILE,
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Stable Diffusion 3 folder."""
    return write_tiny_sd3(tmp_path_factory.mktemp("sd3"))


@pytest.fixture(scope="module")
def sd3(folder: Path) -> DiT4SRPipeline:
    """A pipeline of that folder, its control weights random."""
    pipe = DiT4SRPipeline.from_pretrained(folder, sampler=SAMPLER, tile=TILE)
    randomise(pipe.transformer, 3, only=pipe.transformer.control_parameter_names())
    pipe.set_progress_bar_config(disable=True)
    return pipe


def test_defaults_are_the_published_sampling(folder: Path) -> None:
    pipe = DiT4SRPipeline.from_pretrained(folder)
    assert pipe.config.sampler == published_sampler() and pipe.config.tile == published_tile()
    assert (pipe.config.sampler["steps"], pipe.config.sampler["guidance"], pipe.config.tile["size"]) == (40, 8.0, 64)


def test_a_folder_of_stable_diffusion_is_saved_whole_and_comes_back(sd3: DiT4SRPipeline, tmp_path: Path) -> None:
    sd3.transformer.lr_injection_scale = 1.2
    lq = picture(16, 24, 0)
    before = sd3(lq, "a cat", generator=seeded(), output_type="np").images
    assert before.shape == (1, 64, 96, 3) and before.min() >= 0 and before.max() <= 1 and before.std() > 0.01
    sd3.save_pretrained(tmp_path)
    again = DiT4SRPipeline.from_pretrained(tmp_path)
    assert again.transformer.lr_injection_scale == 1.2
    np.testing.assert_array_equal(again(lq, "a cat", generator=seeded(), output_type="np").images, before)
    sd3.transformer.lr_injection_scale = 1.0
    assert not np.array_equal(sd3(lq, "a cat", generator=seeded(), output_type="np").images, before)


@pytest.mark.parametrize("baseline", [False, True])
def test_the_embedded_default_comes_back_bit_for_bit(tmp_path: Path, baseline: bool) -> None:
    fields = {"in_channels": 16, "out_channels": 16}
    pipe = nano(tiny_controlnet(**fields) if baseline else None)
    before = pipe(picture(12, 10, 0), "a cat", generator=seeded()).images[0]
    pipe.save_pretrained(tmp_path)
    again = DiT4SRPipeline.from_pretrained(tmp_path)
    np.testing.assert_array_equal(np.asarray(again(picture(12, 10, 0), "a cat", generator=seeded()).images[0]), before)


def test_the_pipeline_restores_as_the_verbs_do() -> None:
    pipe = nano()
    settings = SamplerSettings.from_config(SAMPLER)
    restorer = Restorer(
        pipe.transformer, pipe.vae, HashingTextEncoder(5, 12, 10), settings, TileSettings(**TILE), torch.device("cpu")
    )
    lq = picture(13, 9, 0)
    ours = restorer.restore(lq, "A cat.", seed=3, upscale=2.5)
    np.testing.assert_array_equal(np.asarray(pipe(lq, "A cat.", upscale=2.5, generator=seeded(3)).images[0]), ours)
    again = DiT4SRPipeline.from_restorer(restorer)
    np.testing.assert_array_equal(np.asarray(again(lq, "A cat.", upscale=2.5, generator=seeded(3)).images[0]), ours)


def test_every_kind_of_image_goes_in_and_comes_out() -> None:
    pipe, lq = nano(), picture(8, 12, 0)
    expected = pipe(lq, generator=seeded(), output_type="np").images
    tensor = torch.from_numpy(lq).permute(2, 0, 1)
    for image in (Image.fromarray(lq), [Image.fromarray(lq)], lq[None], lq / 255, tensor, tensor[None] / 255):
        np.testing.assert_allclose(pipe(image, generator=seeded(), output_type="np").images, expected, atol=1e-4)
    as_pt = pipe(lq, generator=seeded(), output_type="pt").images
    np.testing.assert_array_equal(as_pt.permute(0, 2, 3, 1).numpy(), expected)
    (as_pil,) = pipe(lq, generator=seeded(), return_dict=False)[0]
    np.testing.assert_array_equal(np.asarray(as_pil), np.rint(expected[0] * 255).astype(np.uint8))
    latent = pipe(lq, generator=seeded(), output_type="latent", colour="none").images
    decoded = pipe.vae.decode(latent)[..., :32, :48].permute(0, 2, 3, 1).numpy()
    plain = pipe(lq, generator=seeded(), output_type="np", colour="none").images
    np.testing.assert_allclose(decoded, plain, rtol=0, atol=1e-6)  # decoded in tiles


def test_images_of_several_sizes_and_each_its_own_noise() -> None:
    pipe = nano()
    lqs = [picture(8, 12, 0), picture(8, 12, 1), picture(9, 7, 2)]
    together = pipe(lqs, ["a", "b", "c"], generator=[seeded(n) for n in range(3)]).images
    assert [image.size for image in together] == [(48, 32), (48, 32), (28, 36)]
    for n, image in enumerate(together):
        alone = pipe(lqs[n], "abc"[n], generator=seeded(n)).images[0]
        assert np.abs(np.asarray(alone).astype(int) - np.asarray(image)).max() <= 1
    two = pipe(lqs[0], "a", num_images_per_prompt=2, generator=[seeded(0), seeded(1)]).images
    assert np.abs(np.asarray(two[0]).astype(int) - np.asarray(together[0])).max() <= 1
    assert not np.array_equal(np.asarray(two[0]), np.asarray(two[1]))


def test_noise_and_embeddings_can_be_given() -> None:
    pipe, lq = nano(), picture(8, 12, 0)
    noise = torch.randn(1, 16, 8, 12, generator=seeded())
    expected = pipe(lq, "a", negative_prompt="b", generator=seeded(), output_type="np").images
    np.testing.assert_array_equal(pipe(lq, "a", "b", latents=noise, output_type="np").images, expected)
    suffixed = SamplerSettings(**pipe.config.sampler).positive("a")
    tokens, negative, pooled, negative_pooled = pipe.encode_prompt([suffixed], ["b"])
    given = pipe(
        lq,
        prompt_embeds=tokens,
        pooled_prompt_embeds=pooled,
        negative_prompt_embeds=negative,
        negative_pooled_prompt_embeds=negative_pooled,
        latents=noise,
        output_type="np",
    ).images
    np.testing.assert_array_equal(given, expected)


def test_noise_that_is_given_stands_for_the_posterior_s_too(sd3: DiT4SRPipeline) -> None:
    noise = torch.randn(1, 4, 8, 12, generator=seeded())
    once, again = (sd3(picture(8, 12, 0), "a cat", latents=noise, output_type="np").images for _ in range(2))
    np.testing.assert_array_equal(once, again)
    given: dict[str, Any] = {"latents": noise, "output_type": "np"}
    drawn = [sd3(picture(8, 12, 0), "a cat", generator=seeded(n), **given).images for n in range(2)]
    assert not np.array_equal(drawn[0], drawn[1]), "a generator draws it"


def test_the_callback_sees_changes_and_stops() -> None:
    pipe, seen = nano(), []

    def zero(pipe: DiT4SRPipeline, step: int, t: torch.Tensor, given: dict[str, Any]) -> dict[str, Any]:
        seen.append((step, round(float(t))))
        pipe._interrupt = step == 1
        return {"latents": torch.zeros_like(given["latents"])}

    latent = pipe(
        picture(8, 8, 0), num_inference_steps=5, callback_on_step_end=zero, output_type="latent", generator=seeded()
    ).images
    assert seen[0] == (0, 1000) and len(seen) == 2
    assert not latent.any()


def test_progress_is_shown(capfd: pytest.CaptureFixture[str]) -> None:
    pipe = nano()
    pipe.set_progress_bar_config(disable=False, desc="sampling")
    pipe(picture(8, 8, 0), generator=seeded())
    assert "sampling: 100%" in capfd.readouterr().err


def test_a_scheduler_of_diffusers_takes_eulers_place() -> None:
    """With diffusers' own stepping of the same method nothing changes; the shift is the scheduler's."""
    pipe, lq = nano(), picture(8, 12, 0)

    class Stepping(FlowMatchEulerDiscreteScheduler):
        """Not the very class whose sigmas are computed here, so it steps by itself."""

    arguments: dict[str, Any] = {"num_inference_steps": 3, "output_type": "np"}
    expected = pipe(lq, generator=seeded(), **arguments).images
    pipe.scheduler = Stepping(shift=3.0)
    np.testing.assert_allclose(pipe(lq, generator=seeded(), **arguments).images, expected, atol=1e-4)
    pipe.scheduler = FlowMatchEulerDiscreteScheduler(shift=1.0)
    assert np.abs(pipe(lq, generator=seeded(), **arguments).images - expected).max() > 1e-3
    pipe.scheduler = FlowMatchHeunDiscreteScheduler(shift=3.0)
    assert np.isfinite(pipe(lq, generator=seeded(), **arguments).images).all()
    pipe.scheduler = DDIMScheduler()
    with pytest.raises(UserError, match="flow matching"):
        pipe(lq, generator=seeded())


def test_half_precision_stays_close_and_the_autoencoder_exact() -> None:
    pipe, lq = nano(colour="none"), picture(8, 12, 0)
    expected = pipe(lq, generator=seeded(), output_type="np").images
    pipe.to(dtype=torch.bfloat16)
    assert pipe.transformer.dtype == torch.bfloat16 and pipe.vae.basis.dtype == torch.float32
    half = pipe(lq, generator=seeded(), output_type="np").images
    assert half.dtype == np.float32 and 0 < np.abs(half - expected).mean() < 0.02


def test_offloading_needs_an_accelerator_and_visits_every_component(sd3: DiT4SRPipeline) -> None:
    assert set(sd3.model_cpu_offload_seq.split("->")) == {
        name for name, part in sd3.components.items() if isinstance(part, torch.nn.Module)
    }
    if not torch.cuda.is_available():
        with pytest.raises(RuntimeError, match="requires accelerator"):
            sd3.enable_model_cpu_offload()


def test_offloaded_components_are_hooked_in_order(folder: Path) -> None:
    """With the CPU in an accelerator's place: the hooks, their order, and encode and decode, are the real ones."""
    pipe = DiT4SRPipeline.from_pretrained(folder, sampler=SAMPLER, tile=TILE)
    pipe.set_progress_bar_config(disable=True)
    expected = pipe(picture(8, 12, 0), "a cat", generator=seeded(), output_type="np").images
    pipe.enable_model_cpu_offload(device="cpu")
    order: list[str] = []
    for name in pipe.model_cpu_offload_seq.split("->"):
        hook = getattr(pipe, name)._hf_hook
        before = hook.pre_forward

        def noted(module: Any, *args: Any, name: str = name, before: Any = before, **kwargs: Any) -> Any:
            if not order or order[-1] != name:
                order.append(name)
            return before(module, *args, **kwargs)

        hook.pre_forward = noted
    np.testing.assert_array_equal(
        pipe(picture(8, 12, 0), "a cat", generator=seeded(), output_type="np").images, expected
    )
    texts = ["text_encoder", "text_encoder_2", "text_encoder_3"]
    assert order == [*texts, *texts, "vae", "transformer", "vae"]


def test_from_pipe_takes_the_parts_of_stable_diffusion(folder: Path, sd3: DiT4SRPipeline) -> None:
    from diffusers import StableDiffusion3Pipeline

    base = StableDiffusion3Pipeline.from_pretrained(folder)
    pipe = DiT4SRPipeline.from_pipe(base, transformer=sd3.transformer, sampler=SAMPLER, tile=TILE)
    assert pipe.vae is base.vae and pipe.text_encoder_3 is base.text_encoder_3
    pipe.set_progress_bar_config(disable=True)
    lq = picture(8, 8, 0)
    np.testing.assert_array_equal(
        pipe(lq, "a cat", generator=seeded(), output_type="np").images,
        sd3(lq, "a cat", generator=seeded(), output_type="np").images,
    )


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"image": []}, "at least one"),
        ({"image": "photo.png"}, "type str"),
        ({"image": np.zeros((8, 8, 4), np.uint8)}, r"\(h, w, 3\)"),
        ({"image": np.full((8, 8, 3), 200.0)}, r"lie in \[0, 1\]"),
        ({"image": torch.full((3, 8, 8), float("nan"))}, r"lie in \[0, 1\]"),
        ({"upscale": 0.5}, "at least 1"),
        ({"height": 32}, "both height and width"),
        ({"height": 4, "width": 4}, "smaller than the image"),
        ({"num_inference_steps": 0}, "at least one step"),
        ({"start": "middle"}, "noise or lr"),
        ({"first_sigma": 0.5}, "start=lr"),
        ({"start": "lr", "first_sigma": 0.001}, "must exceed"),
        ({"colour": "sepia"}, "adain"),
        ({"output_type": "jpeg"}, "pil, np, pt, latent"),
        ({"tile_size": 7}, "multiple of the patch, 2"),
        ({"tile_size": 20}, "positional table ends at 18"),
        ({"tile_overlap": 8}, "overlap 8"),
        ({"tile_batch": 0}, "at least one tile"),
        ({"prompt": ["a", "b"]}, "2 of prompt for 1 images"),
        ({"prompt_embeds": torch.zeros(1, 5, 12)}, "belong together"),
        ({"generator": [torch.Generator()] * 2}, "2 generators for 1"),
        ({"latents": torch.zeros(1, 16, 8, 9)}, "these images need"),
        ({"callback_on_step_end_tensor_inputs": ["prompt_embeds"]}, "only latents"),
    ],
)
def test_what_cannot_be_done_is_refused_in_one_line(arguments: dict[str, Any], words: str) -> None:
    pipe = nano()
    with pytest.raises(UserError, match=words) as refused:
        pipe(**{"image": picture(8, 8, 0), **arguments})
    assert "\n" not in str(refused.value)


def test_the_baseline_has_no_injection_to_scale() -> None:
    pipe = nano(tiny_controlnet(in_channels=16, out_channels=16))
    with pytest.raises(UserError, match="no LR Injection"):
        pipe(picture(8, 8, 0), lr_injection_scale=1.2)


def test_the_injection_scale_of_a_call_is_of_that_call() -> None:
    pipe, lq = nano(), picture(8, 8, 0)
    expected = pipe(lq, generator=seeded(), output_type="np").images
    scaled = pipe(lq, generator=seeded(), output_type="np", lr_injection_scale=1.5).images
    assert np.abs(scaled - expected).max() > 1e-3 and pipe.transformer.lr_injection_scale == 1.0

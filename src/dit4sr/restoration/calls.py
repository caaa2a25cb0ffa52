"""What one call of the pipeline asks for: the sampler's settings, sizes, and what happens after each step."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from diffusers import FlowMatchEulerDiscreteScheduler
from diffusers.utils import logging
from torch import Tensor

from dit4sr.errors import UserError
from dit4sr.restoration.restoring import target_size
from dit4sr.restoration.sampler_settings import SamplerSettings
from dit4sr.sampling import TRAIN_TIMESTEPS, sampling_sigmas

if TYPE_CHECKING:
    from dit4sr.restoration.pipeline import DiT4SRPipeline

logger = logging.get_logger(__name__)

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


def is_plain_euler(scheduler: Any) -> bool:
    """Whether a scheduler is the one that :func:`dit4sr.sampling.sampling_sigmas` reproduces."""
    config = scheduler.config
    return (
        type(scheduler) is FlowMatchEulerDiscreteScheduler
        and config.num_train_timesteps == TRAIN_TIMESTEPS
        and not any(config.get(name) for name in OTHER_SIGMAS)
    )


def settings_of_call(sampler: Mapping[str, Any], scheduler: Any, changes: Mapping[str, Any]) -> SamplerSettings:
    """The pipeline's sampler with what a call changes in it; the shift is the scheduler's where that is Euler's.

    Args:
        sampler: fields of :class:`SamplerSettings`.
        scheduler: the pipeline's.
        changes: fields; None changes nothing.

    Raises:
        UserError: for settings that cannot be sampled with.
    """
    given = {name: value for name, value in changes.items() if value is not None}
    settings = replace(SamplerSettings(**sampler), **given)
    if is_plain_euler(scheduler):
        settings = replace(settings, shift=scheduler.shift)
    if settings.start == "lr" and "start" in given and "first_sigma" not in given and settings.first_sigma == 1:
        logger.warning("start=lr with first_sigma=1 is start=noise: nothing is left of the LR latent")
    settings.check()
    return settings


def size_of_call(image: Tensor, height: int | None, width: int | None, upscale: float) -> tuple[int, int]:
    """Height and width of the restored image, from both sides or from the factor.

    Raises:
        UserError: for one side alone, or a size below the image's.
    """
    h, w = image.shape[-2:]
    if height is None and width is None:
        return target_size(h, w, upscale)
    if height is None or width is None:
        raise UserError("give both height and width, or neither")
    if height < h or width < w:
        raise UserError(f"{width}×{height} is smaller than the image, {w}×{h}: images are restored, not shrunk")
    return height, width


def after_each_step(
    pipe: DiT4SRPipeline, settings: SamplerSettings, bar: Any, callback: StepEnd | None
) -> Callable[[int, Tensor], Tensor | None]:
    """What the sampler calls after each step: the bar goes on, and the callback sees and changes the latent."""
    sigmas = sampling_sigmas(settings.steps, settings.shift, settings.first_sigma)

    def after_step(step: int, z: Tensor) -> Tensor | None:
        bar.update()
        if callback is None:
            return None
        timesteps = sigmas * TRAIN_TIMESTEPS if is_plain_euler(pipe.scheduler) else pipe.scheduler.timesteps
        changed = callback(pipe, step, timesteps[step].float(), {"latents": z})
        return None if not changed else changed.get("latents")

    return after_step

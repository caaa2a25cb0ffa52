"""configs/sampler: how a latent is sampled. Nothing heavy is imported here: a wrong value is told at once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Literal, Self

from dit4sr.errors import UserError
from dit4sr.values import number, whole_number

COLOURS = ("none", "adain", "wavelet")
"""Ways to align a result's colours to its input; see :mod:`dit4sr.restoration.colour`."""


@dataclass(frozen=True)
class SamplerSettings:
    """configs/sampler: how a latent is sampled. See :func:`dit4sr.sampling.sample_euler`."""

    steps: int
    shift: float
    guidance: float
    start: Literal["noise", "lr"]
    first_sigma: float
    negative_prompt: str
    positive_suffix: str
    tile_batch: int
    colour: str
    guidance_interval: tuple[float, float] | None = None

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Self:
        """Build the settings from a config group.

        Raises:
            UserError: for missing or unknown fields, or values that cannot be sampled with.
        """
        settings = cls.of_values(config)
        settings.check_together()
        return settings

    @classmethod
    def of_values(cls, config: Mapping[str, Any]) -> Self:
        """The same, each value looked at by itself: a verb's own may yet be joined to those of a checkpoint.

        Raises:
            UserError: for missing or unknown fields, or a value that nothing can be sampled with.
        """
        expected = {f.name for f in fields(cls)}
        given = {"guidance_interval": None, **config}  # samplers saved before there was one have none
        if wrong := sorted(expected ^ set(given)):
            raise UserError(
                f"sampler: missing or unknown {', '.join(map(str, wrong))}; it has {', '.join(sorted(expected))}"
            )
        if isinstance(given["guidance_interval"], list):
            given["guidance_interval"] = tuple(given["guidance_interval"])
        settings = cls(**{str(k): v for k, v in given.items()})
        settings.check_values()
        return settings

    def check(self) -> None:
        """Refuse what cannot be sampled with, before anything is computed.

        Raises:
            UserError: naming the field.
        """
        self.check_values()
        self.check_together()

    def check_values(self) -> None:
        """Refuse values that mean nothing.

        Raises:
            UserError: naming the field.
        """
        stated = {f"sampler.{f.name}": getattr(self, f.name) for f in fields(self)}
        for name in ("sampler.steps", "sampler.tile_batch"):
            whole_number(stated, name)
        for name in ("sampler.shift", "sampler.guidance", "sampler.first_sigma"):
            number(stated, name)
        if self.colour not in COLOURS:
            raise UserError(f"sampler.colour={self.colour!r}: choose one of {', '.join(COLOURS)}")
        for name in ("negative_prompt", "positive_suffix"):
            if not isinstance(stated[f"sampler.{name}"], str):
                raise UserError(f"sampler.{name}={stated[f'sampler.{name}']}: give words, or ''")
        if self.steps < 1:
            raise UserError(f"sampler.steps={self.steps}: at least one step is needed")
        if self.tile_batch < 1:
            raise UserError(f"sampler.tile_batch={self.tile_batch}: at least one tile is needed")
        if self.shift <= 0:
            raise UserError(f"sampler.shift={self.shift}: it is larger than 0 (1 is no shift)")
        if self.start not in ("noise", "lr"):
            raise UserError(f"sampler.start={self.start!r}: choose noise or lr")
        if not 0 < self.first_sigma <= 1:
            raise UserError(f"sampler.first_sigma={self.first_sigma}: it lies above 0 and is at most 1")
        if self.guidance_interval is not None:
            check_interval(self.guidance_interval)

    def check_together(self) -> None:
        """Refuse values that do not go together.

        Raises:
            UserError: naming the field.
        """
        if self.start == "noise" and self.first_sigma != 1:
            raise UserError(
                f"sampler.first_sigma={self.first_sigma}: starting from noise it is 1; for less use sampler.start=lr"
            )
        if self.first_sigma < 1:
            # Where the schedule ends is the schedule's to say.
            from dit4sr.sampling import sampling_sigmas

            try:
                sampling_sigmas(self.steps, self.shift, self.first_sigma)
            except ValueError as error:
                raise UserError(f"sampler.{error}") from error

    def positive(self, prompt: str) -> str:
        """The prompt with the quality suffix."""
        return ", ".join(part for part in (prompt.strip().rstrip("."), self.positive_suffix) if part)


def check_interval(interval: object) -> None:
    """Refuse an interval of guidance that is none.

    Raises:
        UserError: unless it is two σ, the lower one first.
    """
    ends = interval if isinstance(interval, tuple | list) else ()
    numbers = all(isinstance(end, int | float) and not isinstance(end, bool) for end in ends)
    if len(ends) != 2 or not numbers or not 0 <= ends[0] <= ends[1] <= 1:
        raise UserError(
            f"sampler.guidance_interval={interval}: give the lowest and the highest sigma of the guided steps, within "
            "0 and 1, such as [0.2,0.9], or null"
        )

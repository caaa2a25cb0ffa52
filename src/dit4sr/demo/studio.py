"""What the page asks for: a photo restored with the settings that were chosen, or described."""

from __future__ import annotations

import re
import shutil
import time
import uuid
from collections import deque
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Self

import numpy as np
from PIL import Image

from dit4sr.errors import UserError
from dit4sr.models.checkpoint import TrainedModel
from dit4sr.prompts import PromptSettings
from dit4sr.prompts.captioners import Captioner, build_captioner
from dit4sr.restoration.batches import facts_of, finished, read_fitting, visible
from dit4sr.restoration.finding import Job
from dit4sr.restoration.loading import load_restorer
from dit4sr.restoration.noise import noise_seed
from dit4sr.restoration.reading import read_photograph
from dit4sr.restoration.restorer import Restorer
from dit4sr.restoration.results import settings_of, write_result
from dit4sr.restoration.transparency import with_alpha

KEPT = 20
"""So many results are kept; older ones make way."""

Progress = Callable[[int, int], None]
"""(steps done, steps in all)."""


@dataclass(frozen=True)
class Choices:
    """What the page lets one choose; see configs/sampler."""

    prompt: str
    negative_prompt: str
    steps: int
    guidance: float
    colour: str
    upscale: float
    seed: int


@dataclass(frozen=True)
class Restored:
    """A result.

    Attributes:
        before: PNG of the photo, enlarged bicubically to the result's size.
        after: PNG of the result, with its settings in its metadata.
        said: one line about it.
    """

    before: Path
    after: Path
    said: str


@dataclass(frozen=True, eq=False)
class Studio:
    """A loaded model and a folder for its results.

    Args:
        restorer, trained: see :func:`dit4sr.restoration.loading.load_restorer`.
        captioner: describes photos; None where none is configured.
        folder: of the results.
        prompt, upscale, seed: what the page shows first.
        max_pixels: of a result.
    """

    restorer: Restorer
    trained: TrainedModel
    captioner: Captioner | None
    folder: Path
    prompt: str
    upscale: float
    seed: int
    max_pixels: float
    results: deque[Path] = field(default_factory=deque, init=False)

    @classmethod
    def from_config(cls, config: Mapping[str, Any], explicit: Collection[str], folder: Path) -> Self:
        """Load what configs/demo.yaml asks for.

        Raises:
            UserError: see :func:`dit4sr.restoration.loading.load_restorer`.
        """
        prompt = PromptSettings.from_config(config.get("prompt")).fixed or ""
        restorer, trained = load_restorer(config, explicit, [prompt])
        captioner = None
        if config["captioner"]["name"] != "none":
            captioner = build_captioner(config["captioner"], restorer.device)
        return cls(
            restorer,
            trained,
            captioner,
            folder,
            prompt=prompt,
            upscale=config["upscale"],
            seed=config["seed"],
            max_pixels=config["max_megapixels"] * 1e6,
        )

    @property
    def described(self) -> str:
        """The model in a few words."""
        model, backbone = self.trained.config["model"]["name"], self.trained.config["backbone"]["name"]
        return f"{model} on {backbone}, {self.trained.path} (step {self.trained.step}), on {self.restorer.device}"

    @property
    def ranges(self) -> dict[str, tuple[float, float]]:
        """Least and most of what can be chosen; what the config chooses is always among it."""
        sampler = self.restorer.sampler
        return {
            "steps": (1, max(60, sampler.steps)),
            "guidance": (min(1, sampler.guidance), max(15, sampler.guidance)),
            "upscale": (1, max(8, self.upscale)),
        }

    def restore(self, photo: Path, choices: Choices, progress: Progress) -> Restored:
        """Restore an uploaded photo, as restore.py does the file of that name.

        Raises:
            UserError: for choices that cannot be sampled with.
            UnreadableImage: see :func:`dit4sr.restoration.batches.read_fitting`.
        """
        restorer = self._set_to(choices)
        folder = self.folder / f"result-{uuid.uuid4().hex[:12]}"
        job = Job(photo, photo.name, folder / f"{_safe(photo.stem)}.png")
        read = read_fitting(job, choices.upscale, self.max_pixels)
        began = time.monotonic()
        progress(0, choices.steps)
        (pixels,) = restorer.restore_batch(
            [visible(read)],
            [choices.prompt],
            [noise_seed(choices.seed, job.name)],
            choices.upscale,
            callback=lambda step, _: progress(step + 1, choices.steps),
        )
        seconds = time.monotonic() - began
        facts = settings_of(restorer, self.trained, {"upscale": choices.upscale, "seed": choices.seed})
        self._make_room()
        try:
            height, width = pixels.shape[:2]
            enlarged = np.asarray(Image.fromarray(read.rgb).resize((width, height), Image.Resampling.BICUBIC))
            before = folder / f"{job.result.stem}-before.png"
            write_result(before, enlarged if read.alpha is None else with_alpha(enlarged, read.alpha), {})
            write_result(job.result, finished(pixels, read), facts_of(job, choices.prompt, facts))
        except OSError as error:
            shutil.rmtree(folder, ignore_errors=True)
            raise UserError(f"the result cannot be written: {error.strerror or error}") from error
        self.results.append(folder)
        small = f"{read.rgb.shape[1]}×{read.rgb.shape[0]}"
        return Restored(before, job.result, f"{small} → {width}×{height} pixels in {seconds:.1f} s")

    def describe(self, photo: Path) -> str:
        """A prompt for a photo.

        Raises:
            UserError: no captioner is configured, or its model is not there.
            UnreadableImage: the photo cannot be read.
        """
        if self.captioner is None:
            raise UserError("no captioner is configured: start the demo with captioner=llava")
        return self.captioner.caption([read_photograph(photo).rgb])[0]

    def _set_to(self, choices: Choices) -> Restorer:
        sampler = replace(
            self.restorer.sampler,
            steps=choices.steps,
            guidance=choices.guidance,
            colour=choices.colour,
            negative_prompt=choices.negative_prompt,
        )
        sampler.check()
        return replace(self.restorer, sampler=sampler)

    def _make_room(self) -> None:
        while len(self.results) >= KEPT:
            shutil.rmtree(self.results.popleft(), ignore_errors=True)


def _safe(stem: str) -> str:
    """A file name that any system can have."""
    return re.sub(r"[^\w .()\[\]-]+", "_", stem)[:80].strip(" .") or "photo"

"""The prompts of photos, as the config groups ``prompt`` and ``captioner`` choose them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dit4sr.errors import UserError
from dit4sr.files import write_atomically
from dit4sr.prompts.caption_files import CaptionFolder, read_caption
from dit4sr.prompts.captioners import CAPTIONERS, Captioner, build_captioner, fixed_text
from dit4sr.prompts.optics import drop_optics
from dit4sr.prompts.settings import PromptSettings

if TYPE_CHECKING:
    import numpy as np
    import torch

READ_AT_ONCE = 32
"""Images in memory while they are described."""


@dataclass(frozen=True)
class Photo:
    """A photo that needs a prompt.

    Attributes:
        path: its file.
        name: its path relative to the photos' folder, with forward slashes.
        result: where its restoration goes: a caption that a model makes is written beside it as <stem>.txt.
    """

    path: Path
    name: str
    result: Path | None = None


class Captions:
    """The prompt of each photo.

    Args:
        settings: configs/prompt; its fixed prompt goes before any captioner.
        captioner: configs/captioner.
        device: where a model that describes images computes.

    Raises:
        UserError: an unknown or incomplete captioner, or one that a fixed prompt leaves without use.
    """

    def __init__(
        self, settings: PromptSettings, captioner: Mapping[str, Any] | None, device: torch.device | str = "cpu"
    ) -> None:
        config = dict(captioner or {"name": "none"})
        name = config.get("name")
        if name not in CAPTIONERS:
            raise UserError(f"captioner.name={name!r}: choose one of {', '.join(CAPTIONERS)}")
        if settings.fixed is not None and name != "beside" and (name, settings.fixed) != ("none", ""):
            raise UserError(
                f"prompt fixes every photo's prompt ({settings.fixed!r}), so captioner={name} would never be asked: "
                "leave one of them out"
            )
        self.settings, self.name = settings, name
        self.fixed = settings.fixed
        self.drop_optics = bool(config.get("drop_optics"))
        self.folder: CaptionFolder | None = None
        self.captioner: Captioner | None = None
        self.model = str(config.get("model"))
        self._known: dict[str, str] = {}
        if self.fixed is None and name == "none":
            self.fixed = ""
        elif self.fixed is None and name == "fixed":
            self.fixed = fixed_text(config)
        elif name == "folder":
            if config.get("path") is None:
                raise UserError("captioner=folder needs captioner.path=<folder of <stem>.txt files>")
            self.folder = CaptionFolder(Path(config["path"]).expanduser())
            self.allow_missing = bool(config.get("allow_missing"))
        elif name == "llava":
            self.captioner = build_captioner(config, device)

    @property
    def from_files_beside(self) -> bool:
        """Whether each photo's own text file is its prompt."""
        return self.fixed is None and self.name == "beside"

    @property
    def words(self) -> str:
        """Where the prompts come from, in words."""
        if self.fixed is not None:
            return f"fixed: {self.fixed!r}" if self.fixed else "the null prompt for all"
        if self.folder is not None:
            return f"captions of {self.folder.folder}"
        if self.captioner is not None:
            return f"captions of the {self.settings.describes.upper()} image by {self.model}"
        return "captions beside the photos"

    @property
    def facts(self) -> dict[str, Any]:
        """What a result's metadata or a summary says of its prompt."""
        return {"source": self.words, "describes": self.settings.describes}

    def prepare(self, photos: Sequence[Photo], read: Callable[[Path], np.ndarray]) -> None:
        """Find or make the prompts of all photos, before any is restored; a captioning model leaves memory then.

        Args:
            photos: all of them, each with the file of the image to describe.
            read: file → uint8 (H, W, 3) RGB; for one that raises ``UnreadableImage`` there is no prompt.

        Raises:
            UserError: photos lack captions or share them, or the captioning model cannot be loaded.
        """
        if self.folder is not None:
            self.folder.check([photo.name for photo in photos], allow_missing=self.allow_missing)
        if self.captioner is None or not photos:
            return
        from dit4sr.data.images import UnreadableImage

        todo = iter(photos)
        while some := list(islice(todo, READ_AT_ONCE)):
            images: dict[Photo, np.ndarray] = {}
            for photo in some:
                try:
                    images[photo] = read(photo.path)
                except UnreadableImage:  # told when its turn to be restored comes
                    continue
            for photo, caption in zip(images, self.captioner.caption(list(images.values())), strict=True):
                self._known[photo.name] = caption
                _write_beside(photo, caption)
        self.captioner.release()

    def prompt_for(self, path: Path, name: str, image: np.ndarray | None = None) -> str:
        """The prompt of one photo; "" is the null prompt.

        Args:
            path: its file.
            name: its path relative to the photos' folder.
            image: uint8 (H, W, 3), described where :meth:`prepare` has not done so.

        Raises:
            UserError: see :meth:`prepare`.
        """
        if self.fixed is not None:
            return self.fixed
        if self.captioner is not None:
            if name not in self._known and image is not None:
                self._known[name] = self.captioner.caption([image])[0]
            return self._known.get(name, "")
        file = path.with_suffix(".txt") if self.folder is None else self.folder.find(name)
        caption = read_caption(file) if file is not None else ""
        return drop_optics(caption) if self.drop_optics else caption


def build_captions(config: Mapping[str, Any]) -> Captions:
    """From a verb's config, as plain values with prompt, captioner and device, to its photos' prompts.

    Raises:
        UserError: see :class:`Captions` and :class:`dit4sr.prompts.settings.PromptSettings`.
    """
    settings = PromptSettings.from_config(config.get("prompt"))
    return Captions(settings, config.get("captioner"), config.get("device") or "cpu")


def described_file(describes: str, *, lq: Path, hq: Path | None) -> Path:
    """The image that captions describe, of a pair.

    Raises:
        UserError: it is the HQ image and there is none.
    """
    if describes == "lq":
        return lq
    if hq is None:
        raise UserError(f"prompt.describes=hq, but {lq.name} has no HQ image: set prompt.describes=lq")
    return hq


def _write_beside(photo: Photo, caption: str) -> None:
    if photo.result is None or photo.result.parent.resolve() == photo.path.parent.resolve():
        return  # beside the photo itself it would pass for the photographer's own
    with write_atomically(photo.result.with_suffix(".txt")) as temporary:
        temporary.write_text(caption + "\n", encoding="utf-8")

"""Captioners: from images to their descriptions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from dit4sr.errors import UserError

if TYPE_CHECKING:
    import numpy as np
    import torch

CAPTIONERS = ("beside", "folder", "llava", "fixed", "none")
READS_IMAGES = ("llava", "fixed", "none")


class Captioner(Protocol):
    """Describes images."""

    def caption(self, images: Sequence[np.ndarray]) -> list[str]:
        """One caption an image, uint8 (H, W, 3) RGB of any sizes."""
        ...

    def release(self) -> None:
        """Drop the weights from memory, if there are any; the next :meth:`caption` loads them again."""
        ...


class FixedCaptioner:
    """The same caption for every image; "" is the null prompt."""

    def __init__(self, text: str) -> None:
        self.text = text

    def caption(self, images: Sequence[np.ndarray]) -> list[str]:
        """See :class:`Captioner`."""
        return [self.text] * len(images)

    def release(self) -> None:
        """Nothing to drop."""


def build_captioner(
    config: Mapping[str, Any], device: torch.device | str = "cpu", *, local_files_only: bool = False
) -> Captioner:
    """The captioner of configs/captioner, for those that describe images: llava, fixed and none.

    Raises:
        UserError: an unknown name, one that reads text files in place of images, or a model that is not there.
    """
    name = config["name"]
    if name == "none":
        return FixedCaptioner("")
    if name == "fixed":
        return FixedCaptioner(fixed_text(config))
    if name == "llava":
        from dit4sr.prompts.llava import LlavaCaptioner

        return LlavaCaptioner.from_config(config, device, local_files_only=local_files_only)
    if name in CAPTIONERS:
        raise UserError(f"captioner={name} reads text files and looks at no image: choose {', '.join(READS_IMAGES)}")
    raise UserError(f"captioner.name={name!r}: choose one of {', '.join(CAPTIONERS)}")


def fixed_text(config: Mapping[str, Any]) -> str:
    """The prompt of captioner=fixed.

    Raises:
        UserError: it is not given.
    """
    text = config.get("prompt")
    if not isinstance(text, str):
        raise UserError('captioner=fixed needs captioner.prompt="…"')
    return text

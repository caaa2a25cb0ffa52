"""Where pretrained text and caption models come from: a local folder, or the hub's cache, or the hub."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from dit4sr.errors import UserError
from dit4sr.pretrained import HUB_ID, hub_folder


def local_folder(
    source: str | Path, setting: str, *, folders: Sequence[str] = ("",), local_files_only: bool = False
) -> Path:
    """The folder of a local path, or of a hub id once it is downloaded.

    Args:
        source: folder, or hub id such as ``llava-hf/llava-1.5-7b-hf``.
        setting: name of the setting it is from, for the message.
        folders: of a repository that are needed; "" for the files outside any folder.
        local_files_only: look in the hub's cache alone. (So does the environment's ``HF_HUB_OFFLINE=1``.)

    Raises:
        UserError: no such folder, or a repository that is missing, gated, or out of reach.
    """
    folder = Path(source).expanduser()
    if folder.is_dir():
        return folder
    hint = f"download it (hf download REPOSITORY --local-dir FOLDER) and set {setting}=FOLDER"
    if folder.is_absolute() or str(source).startswith(("~", ".")) or not HUB_ID.fullmatch(str(source)):
        raise UserError(f"{setting}={source}: there is no such folder: {hint}")
    return hub_folder(str(source), folders, local_files_only=local_files_only, hint=hint)


def read_config(path: Path, setting: str) -> dict[str, Any]:
    """A model's config.json.

    Raises:
        UserError: it is missing or no JSON object.
    """
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UserError(f"{setting}: {path} is missing; download the model again, whole") from error
    except (OSError, ValueError) as error:
        raise UserError(f"{setting}: {path} cannot be read ({first_line(error)}); download it again") from error
    if not isinstance(config, dict):
        raise UserError(f"{setting}: {path} is not a model's config; download it again")
    return config


def first_line(error: BaseException) -> str:
    """What an error says, in one line."""
    lines = str(error).strip().splitlines()
    return lines[0].strip() if lines else type(error).__name__


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Load models without transformers' progress bars and tables."""
    from transformers.utils import logging

    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()

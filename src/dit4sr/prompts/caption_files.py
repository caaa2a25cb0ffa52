"""A folder of captions: one text file a photo, matched by name and never by order."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from dit4sr.errors import UserError


def read_caption(path: Path) -> str:
    """The text of a caption file, in one line; "" where there is none."""
    if not path.is_file():
        return ""
    return " ".join(path.read_text(encoding="utf-8-sig", errors="replace").split())


class CaptionFolder:
    """<folder>/<relative folder>/<stem>.txt of a photo, else the one <stem>.txt anywhere in the folder.

    Args:
        folder: with folders inside it, or without.

    Raises:
        UserError: it is no folder or holds no caption, or two files have one name but for its case.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        if not folder.is_dir():
            raise UserError(f"captioner.path={folder} is no folder: give one that holds <stem>.txt files")
        self._by_name: dict[str, Path] = {}
        self._by_stem: dict[str, list[Path]] = {}
        for path in sorted(folder.rglob("*")):
            relative = path.relative_to(folder)
            hidden = any(part.startswith(".") for part in relative.parts)
            if hidden or path.suffix.lower() != ".txt" or not path.is_file():
                continue
            name = _key(relative.as_posix())
            if name in self._by_name:
                raise UserError(f"{self._by_name[name]} and {path} caption the same photo: keep one of them")
            self._by_name[name] = path
            self._by_stem.setdefault(PurePosixPath(name).name, []).append(path)
        if not self._by_name:
            raise UserError(f"captioner.path={folder} holds no .txt file: give a folder of <stem>.txt files")

    def find(self, name: str) -> Path | None:
        """The caption file of a photo, by its path relative to the photos' folder; None where there is none.

        Raises:
            UserError: several files have its stem, none of them in its folder.
        """
        key = _key(name)
        if key in self._by_name:
            return self._by_name[key]
        found = self._by_stem.get(PurePosixPath(key).name, [])
        if len(found) > 1:
            raise UserError(
                f"{found[0]} and {found[1]} could both caption {name}: put captions into folders like the photos'"
            )
        return found[0] if found else None

    def check(self, names: Sequence[str], *, allow_missing: bool) -> None:
        """Refuse photos that have no caption, or that share one.

        Raises:
            UserError: naming them.
        """
        users: dict[Path, str] = {}
        missing = []
        for name in names:
            path = self.find(name)
            if path is None:
                missing.append(name)
            elif path in users:
                raise UserError(
                    f"{users[path]} and {name} would share the caption {path}: put captions into folders like the "
                    "photos'"
                )
            else:
                users[path] = name
        if missing and not allow_missing:
            more = f" and {len(missing) - 5} more" if len(missing) > 5 else ""
            raise UserError(
                f"captioner.path={self.folder} has no caption for {len(missing)} of {len(names)} photos "
                f"({', '.join(missing[:5])}{more}): add <stem>.txt files, or set captioner.allow_missing=true"
            )


def _key(name: str) -> str:
    """A relative path without its suffix; accented letters in one form, as file systems differ in theirs."""
    return PurePosixPath(unicodedata.normalize("NFC", name)).with_suffix("").as_posix()

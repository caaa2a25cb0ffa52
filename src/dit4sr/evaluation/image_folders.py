"""Folders of images: which files they hold, and which of them is which image of a benchmark."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from PIL import Image

from dit4sr.data.images import FORMATS, SUFFIXES, UnreadableImage
from dit4sr.errors import UserError

EXIF_ORIENTATION = 0x0112
SIDEWAYS = (5, 6, 7, 8)
"""EXIF orientations that swap width and height."""

ENDING = re.compile(r"[_\-. ][^_\-. ]+$")
"""A name's last word with the sign before it, such as ``_x1`` or ``_LR4``."""

PREFIX, SUFFIX = re.compile(r"(.*[_\-. ])?"), re.compile(r"([_\-. ].*)?")
"""What a method may have put before and behind a name: words of their own, never a longer number."""


def image_files(folder: Path, suffixes: Sequence[str] = SUFFIXES) -> dict[str, Path]:
    """Image files of a folder (not of folders inside it), by file name; hidden ones are left out."""
    return {
        path.name: path
        for path in sorted(folder.iterdir())
        if path.suffix.lower() in suffixes and not path.name.startswith(".") and path.is_file()
    }


def find_images(folder: Path) -> tuple[Path, dict[str, Path]]:
    """The images of a folder by file name, or those of the one folder inside it that holds any.

    So archives are often packed, and so many methods write (``<out>/restored``).

    Returns:
        The folder that holds them, and its files; none where there are none.

    Raises:
        UserError: several folders inside it hold images.
    """
    if files := image_files(folder):
        return folder, files
    inner = _inner(folder)
    if len(inner) > 1:
        names = ", ".join(path.name for path in inner)
        raise UserError(f"{folder} holds images in several folders ({names}): give one of them")
    return next(iter(inner.items()), (folder, {}))


def _inner(folder: Path) -> dict[Path, dict[str, Path]]:
    """The folders inside that hold images; without hidden ones."""
    paths = [p for p in sorted(folder.iterdir()) if p.is_dir() and not p.name.startswith(".") and p.name != "__MACOSX"]
    return {path: files for path in paths if (files := image_files(path))}


def by_stem(files: Mapping[str, Path], folder: Path) -> dict[str, Path]:
    """The same files by stem.

    Raises:
        UserError: two files have one stem.
    """
    stems: dict[str, Path] = {}
    for path in files.values():
        if path.stem in stems:
            raise UserError(f"{folder} has both {stems[path.stem].name} and {path.name}: keep one of them")
        stems[path.stem] = path
    return stems


def match_names(folder: Path, names: Sequence[str], of: str) -> tuple[dict[str, Path], str]:
    """Another method's images of a benchmark, found in a folder by their names.

    A file is an image's where its stem is the image's name. Where a folder does not have all of them, one change of
    name that is the same for all images is looked for: words before the name or behind it (``Canon_10_x1_out.png``),
    and the names' common last word left out or replaced (``Canon_10.png``, ``Canon_10_x4.png``).

    Args:
        folder: of the images, see :func:`find_images`; files that are no image of the benchmark are left alone.
        names: of the benchmark's images.
        of: the benchmark's name, for messages.

    Returns:
        Name → file, and the change in words; "" where there is none.

    Raises:
        UserError: images are missing, or several changes fit.
    """
    folder, found = find_images(folder)
    if not found:
        raise UserError(f"{folder} holds no image ({', '.join(SUFFIXES)})")
    files = by_stem(found, folder)
    missing = [name for name in names if name not in files]
    if not missing:
        return {name: files[name] for name in names}, ""
    changes = _changes(list(files), names)
    if len(changes) > 1:
        ways = " and ".join(sorted(changes.values())[:2])
        raise UserError(
            f"{folder}: its images can be matched with those of {of} in several ways ({ways}): keep those of one in it"
        )
    if not changes:
        more = f" and {len(missing) - 5} more" if len(missing) > 5 else ""
        inner = ", ".join(path.name for path in _inner(folder))
        raise UserError(
            f"{folder} has no image for {', '.join(missing[:5])}{more} of benchmark {of} (matched by stem, or by one "
            "change of name that is the same for all): restore them too, or rename the files"
            + (f", or give a folder inside it ({inner})" if inner else "")
        )
    ((stems, words),) = changes.items()
    return {name: files[stem] for name, stem in zip(names, stems, strict=True)}, words


def _changes(stems: Sequence[str], names: Sequence[str]) -> dict[tuple[str, ...], str]:
    """The stems in the names' order by every change of name that fits all of them → the change in words."""
    endings = {match[0] if (match := ENDING.search(name)) else "" for name in names}
    there = set(stems)
    found: dict[tuple[str, ...], str] = {}
    for ending in ("", *(endings if len(endings) == 1 else ())):
        cores = [name.removesuffix(ending) for name in names]
        if not all(cores):
            continue
        for stem in stems:
            for at in re.finditer(re.escape(cores[0]), stem):
                before, behind = stem[: at.start()], stem[at.end() :]
                if not (PREFIX.fullmatch(before) and SUFFIX.fullmatch(behind)):
                    continue
                wanted = tuple(before + core + behind for core in cores)
                if there.issuperset(wanted):
                    found.setdefault(wanted, f"{names[0]} is {stem}")
    return found


def image_size(path: Path) -> tuple[int, int]:
    """(height, width) from the header, as they are after the EXIF orientation is applied.

    Raises:
        UnreadableImage: where there is no readable header.
    """
    try:
        with Image.open(path, formats=FORMATS) as image:
            width, height = image.size
            # PNG's own getexif would decode the whole image, in search of EXIF data behind the pixels.
            sideways = Image.Image.getexif(image).get(EXIF_ORIENTATION) in SIDEWAYS
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise UnreadableImage(f"{path.name} is not a readable image ({type(error).__name__})") from error
    return (width, height) if sideways else (height, width)

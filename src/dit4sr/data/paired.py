"""Folders of real LQ-HQ pairs, matched by an explicit rule on the files' stems and never by their order."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from dit4sr.data.images import SUFFIXES, UnreadableImage, read_image
from dit4sr.data.reader import RawSample, Reference
from dit4sr.data.tally import UnusableSample
from dit4sr.errors import UserError

Key = tuple[str, str]
"""(folder inside the data set, name that the two files share)."""


@dataclass(frozen=True)
class PairFiles:
    """The two files of a pair."""

    name: str
    lq: str
    hq: str


def match_pairs(lq: Path, hq: Path, lq_rule: str = "(.+)", hq_rule: str = "(.+)") -> tuple[PairFiles, ...]:
    """Pair the images of two folders (which may be one), subfolders included.

    A rule is a regular expression with one group that must fit the whole stem of a file; files that it does not
    fit are left out. The group's text and the subfolder are the key, and equal keys make a pair.

    Args:
        lq, hq: folders.
        lq_rule, hq_rule: for example ``(.+)_LR4`` and ``(.+)_HR``.

    Returns:
        The pairs, sorted by key.

    Raises:
        UserError: a folder or a rule is wrong, two files have one key, or a file has no partner.
    """
    found = {"lq": _keyed(lq, lq_rule, "lq"), "hq": _keyed(hq, hq_rule, "hq")}
    for side, other in (("lq", "hq"), ("hq", "lq")):
        if alone := sorted(set(found[side]) - set(found[other])):
            raise UserError(
                f"{len(alone)} of {len(found[side])} {side} images have no {other} partner, the first is "
                f"{found[side][alone[0]]}: mend the folders, or the rules data.match.lq and data.match.hq."
            )
    return tuple(
        PairFiles("/".join(filter(None, key)), str(found["lq"][key]), str(found["hq"][key]))
        for key in sorted(found["lq"])
    )


def _keyed(folder: Path, rule: str, side: str) -> dict[Key, Path]:
    if not folder.is_dir():
        raise UserError(f"data.{side}={folder}: there is no such folder.")
    try:
        pattern = re.compile(rule)
    except re.error as error:
        raise UserError(f"data.match.{side}={rule}: not a regular expression ({error}).") from error
    if pattern.groups != 1:
        raise UserError(f"data.match.{side}={rule}: needs exactly one group (…) for what the two names share.")
    keyed: dict[Key, Path] = {}
    for path in _images(folder):
        match = pattern.fullmatch(path.stem)
        if match is None or not match[1]:
            continue
        parent = path.parent.relative_to(folder).as_posix()
        key = ("" if parent == "." else parent, match[1])
        if key in keyed:
            raise UserError(
                f"{keyed[key]} and {path} are both {match[1]!r} by data.match.{side}={rule}: sharpen the rule."
            )
        keyed[key] = path
    if not keyed:
        raise UserError(f"no image in {folder} fits data.match.{side}={rule}.")
    return keyed


def _images(folder: Path) -> Iterable[Path]:
    named = (path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES and not path.name.startswith("."))
    return sorted(path for path in named if path.is_file())


class PairReader:
    """Reads pairs of files as the samples of one shard; a caption is the text file beside the HQ image."""

    shards = 1

    def __init__(self, pairs: tuple[PairFiles, ...]) -> None:
        self.pairs = pairs

    def count(self, shard: int) -> int:
        """Number of pairs."""
        return len(self.pairs)

    def soon(self, shard: int) -> None:
        """Nothing to do: the files are here."""

    def read(self, reference: Reference) -> RawSample:
        """Read one pair.

        Raises:
            UnusableSample: an image or the caption is gone or cannot be decoded.
        """
        pair = self.pairs[reference[1]]
        caption = Path(pair.hq).with_suffix(".txt")
        try:
            return RawSample(
                pair.name,
                image=read_image(pair.hq),
                lq=read_image(pair.lq),
                caption=caption.read_text(encoding="utf-8").strip() if caption.is_file() else "",
            )
        except UnreadableImage as error:
            raise UnusableSample("corrupt image", f"pair {pair.name} ({error})") from error
        except UnicodeDecodeError as error:
            raise UnusableSample("caption is not UTF-8", str(caption)) from error
        except OSError as error:
            raise UnusableSample("cannot be read", f"pair {pair.name} ({error})") from error

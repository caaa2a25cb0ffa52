"""Dropping from a caption the sentences that describe how the photo looks in place of what it shows.

A caption of a degraded photo says that it is blurry; a network told so restores it blurry.
"""

from __future__ import annotations

import re

# Regular expressions of the words and their forms: "focused" but not "composition", "blurry" but not "bluish".
_WORDS = (
    r"(?:un|de|re)?focus\w*",  # focus, focused, focusing, in-focus, unfocused
    r"focal(?:ly)?",
    r"prominen(?:t|tly|ce)",
    r"close[\s-]?ups?",
    r"black[\s-]+(?:and|&)[\s-]+whites?",
    r"blur\w*",  # blurred, blurry, blurring, blurriness
    r"depths?",
    r"dense(?:ly|r|st|ness)?",
    r"locat(?:e|es|ed|ing)",
    r"position(?:s|ed|ing)?",
)
OPTICS = re.compile(rf"(?<!\w)(?:{'|'.join(_WORDS)})(?!\w)", re.IGNORECASE)
"""Focus, focal, prominent, close-up, black and white, blur, depth, dense, locate, position."""

_ABBREVIATIONS = frozenset({"mr", "mrs", "ms", "dr", "prof", "vs", "approx", "e.g", "i.e"})
_END = re.compile(r"[.!?…]+[\"'”’)\]]*(?=\s)|[。！？]|\n+")


def sentences(text: str) -> list[str]:
    """The sentences of a text, without the space around them; a line break ends one too."""
    found, start = [], 0
    for end in _END.finditer(text):
        body = text[start : end.start()].strip()
        last_word = body.rpartition(" ")[2].lstrip("(\"'“‘").lower()
        if end.group() == "." and (last_word in _ABBREVIATIONS or body.isdigit()):  # "Dr. Who", "1. A cup"
            continue
        found.append(text[start : end.end()])
        start = end.end()
    found.append(text[start:])
    return [sentence.strip() for sentence in found if sentence.strip()]


def drop_optics(caption: str) -> str:
    """The caption without the sentences in which a word of :data:`OPTICS` occurs; "" where none is left."""
    return " ".join(sentence for sentence in sentences(caption) if not OPTICS.search(sentence))

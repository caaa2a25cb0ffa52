"""Captions side by side: which sentences stand in one of them alone."""

from __future__ import annotations

import re
from collections.abc import Mapping

from dit4sr.prompts.optics import sentences


def normalised(sentence: str) -> str:
    """A sentence without case, punctuation and repeated spaces, for comparison."""
    return " ".join(re.findall(r"\w+", sentence.casefold()))


def unique_sentences(captions: Mapping[str, str]) -> dict[str, list[tuple[str, bool]]]:
    """Source → its sentences, each with whether no other source's caption has it.

    Args:
        captions: source → caption; with fewer than two captions nothing is unique.
    """
    split = {source: sentences(text) for source, text in captions.items()}
    filled = [source for source, parts in split.items() if parts]
    owners: dict[str, set[str]] = {}
    for source, parts in split.items():
        for part in parts:
            owners.setdefault(normalised(part), set()).add(source)
    return {
        source: [(part, len(filled) > 1 and owners[normalised(part)] == {source}) for part in parts]
        for source, parts in split.items()
    }


def captions_text(captions: Mapping[str, Mapping[str, str]], words: Mapping[str, str]) -> str:
    """captions.md: every image's captions, sentences of one source alone in bold.

    Args:
        captions: image → source → caption.
        words: source → what its prompt describes.
    """
    lines = ["**Bold**: a sentence that no other source's caption of the image has.", ""]
    for image, by_source in captions.items():
        lines += [f"## {image}", ""]
        for source, parts in unique_sentences(by_source).items():
            text = " ".join(f"**{_plain(part)}**" if alone else _plain(part) for part, alone in parts)
            lines.append(f"- *{source}* ({words[source]}): {text or '(the null prompt)'}")
        lines.append("")
    return "\n".join(lines)


def _plain(text: str) -> str:
    """A sentence with Markdown's signs made harmless."""
    return re.sub(r"([\\`*_\[\]<>#|])", r"\\\1", text)

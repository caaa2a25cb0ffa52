"""The config group ``prompt``: which prompts, how they are encoded, and what they describe."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self

from dit4sr.errors import UserError

ENCODINGS = ("live", "cached", "null")
QUANTISED = ("none", "int8_weights", "nf4")
DTYPES = ("auto", "float32", "bfloat16", "float16")
TEXT_DEVICES = ("auto", "cpu", "offload")
"""Values of a verb's ``text_encoder_device``. auto: with the network, offload where a GPU has no room for both,
cpu where it has none for the largest encoder by itself.
offload: on the network's device before the network, one encoder after the other, for all prompts of the run."""
FIELDS = ("name", "fixed", "encoding", "release", "dtype", "quantise", "cache", "describes")


@dataclass(frozen=True)
class PromptSettings:
    """configs/prompt.

    Attributes:
        fixed: one prompt for every photo; None for the photos' captions.
        encoding: live: the encoders stay in memory. cached: embeddings are kept on disk, and encoders are loaded
            for new prompts alone. null: cached, and every photo's prompt is the null prompt "".
        release: drop the encoders from memory after each use.
        dtype: of the encoders' weights; auto is that of their files.
        quantise: T5's matrices in 8 bits (torchao) or in 4 (bitsandbytes), for small GPUs: approximate.
        cache: folder of the embeddings.
        describes: the image that captions describe: hq in training, lq in restoration and evaluation.
    """

    fixed: str | None = None
    encoding: Literal["live", "cached", "null"] = "live"
    release: bool = False
    dtype: str = "auto"
    quantise: str = "none"
    cache: Path | None = None
    describes: Literal["hq", "lq"] = "lq"

    @classmethod
    def from_config(cls, config: Mapping[str, Any] | None) -> Self:
        """Read the group; ``~prompt``, which leaves the group out, means the null prompt.

        Raises:
            UserError: an unknown field or value, or a fixed prompt in the null mode.
        """
        config = dict(config or {})
        if unknown := sorted(set(config) - set(FIELDS)):
            raise UserError(f"prompt has no {', '.join(unknown)}; it has {', '.join(FIELDS)}")
        chosen = {name: config[name] for name in cls.__dataclass_fields__ if name in config}
        # A YAML null is None; and without a group only what a verb adds to it is left.
        encoding = chosen["encoding"] = str(chosen.get("encoding") or "null")
        fixed = chosen.get("fixed")
        one_of = {"encoding": ENCODINGS, "dtype": DTYPES, "quantise": QUANTISED, "describes": ("hq", "lq")}
        for name, values in one_of.items():
            if name in chosen and chosen[name] not in values:
                raise UserError(f"prompt.{name}={chosen[name]}: choose one of {', '.join(values)}")
        if fixed is not None and not isinstance(fixed, str):
            chosen["fixed"] = fixed = str(fixed)
        if encoding == "null":
            if fixed:
                raise UserError(f"prompt.fixed={fixed!r} with prompt.encoding=null: leave one of them out")
            chosen["fixed"] = ""
        if chosen.get("cache") is not None:
            chosen["cache"] = Path(chosen["cache"]).expanduser()
        return cls(**chosen)


def check_text_device(value: object) -> str:
    """A verb's ``text_encoder_device``; null is auto.

    Raises:
        UserError: unless it is one of :data:`TEXT_DEVICES`.
    """
    place = "auto" if value is None else str(value)
    if place not in TEXT_DEVICES:
        raise UserError(f"text_encoder_device={value}: choose one of {', '.join(TEXT_DEVICES)}")
    return place

"""The config group ``data`` → the sources of the stream, and their opening inside a worker."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dit4sr.data.locations import check_place, locate_shards
from dit4sr.data.remote import RemoteSettings, RemoteStore, Shard
from dit4sr.errors import UserError

NAMES = {"embedded": "synthetic", "shards": "synthetic", "paired": "paired", "paired_latent": "paired_latent"}
"""Name of a file of configs/data → kind of its samples (see `reader.KINDS`)."""


@dataclass(frozen=True)
class SourceSettings:
    """One source of samples: shards of a kind, or pairs of files; plain data, to be sent to workers."""

    name: str
    weight: float
    kind: str
    shards: tuple[Shard, ...] = ()
    pairs: tuple[Any, ...] = ()
    prompts: bool = True


ORDERS = ("shuffled", "resampled", "sequential")
"""Values of ``data.order``."""

ENGINES = ("worker", "device")
"""Values of ``data.engine``: who degrades."""

NOT_OF = {"embedded": ("sources", "lq", "hq"), "shards": ("lq", "hq"), "paired_latent": ("lq", "hq")}
"""Name of a file of configs/data → settings of other ones, which it would not look at."""


def check_sources(data: Mapping[str, Any], embedded: Path | None = None) -> None:
    """Refuse a config that is plainly wrong, before anything heavy is imported or a server is asked.

    Args:
        data: the config group ``data``.
        embedded: folder of the embedded photos' shards, where ``data.shards`` is to be no other with data=embedded.

    Raises:
        UserError: naming the setting, and what to do.
    """
    name = data["name"]
    if name not in NAMES:
        raise UserError(f"unknown data {name!r}: choose one of {', '.join(NAMES)}.")
    _check_codec(data)
    for key in NOT_OF.get(name, ()):
        if data.get(key):
            needed = "shards" if key == "sources" else "paired"
            raise UserError(f"data.{key} needs data={needed}: with data={name} it would not be looked at.")
    if name == "embedded":
        own = [str(embedded)] if embedded else _places(data, "shards")
        if others := [place for place in _places(data, "shards") if str(Path(place)) not in own]:
            raise UserError(
                f"data.shards={', '.join(others)} needs data=shards: data=embedded trains on the embedded photographs "
                "(or leave data.shards out, or set it to null)."
            )
        return
    if name == "paired" and (data.get("lq") or data.get("hq")):
        if not (data.get("lq") and data.get("hq")):
            raise UserError("data=paired needs both folders, data.lq=<folder> and data.hq=<folder>, or data.shards.")
        if _places(data, "shards") or data.get("sources"):
            raise UserError("data=paired takes either the folders data.lq and data.hq or shards, not both.")
        return
    for _, _, places in _weighted(data):
        for place in places:
            check_place(place)
            local = "://" not in place and not any(sign in place for sign in "{*?[")
            if local and not os.path.exists(place):
                raise UserError(
                    f"data.shards={place}: no such folder or shards; python prepare.py source=<photos> makes some"
                )


def _check_codec(data: Mapping[str, Any]) -> None:
    """Refuse a codec that is not known or not installed, or that nothing would use."""
    codec, engine = data.get("jpeg", "libjpeg"), data.get("engine", "worker")
    if codec == "libjpeg":
        return
    from dit4sr.data.degradations.codecs import find_codec

    find_codec(codec)
    if engine != "device":
        raise UserError(f"data.jpeg={codec} is of data.engine=device; data.engine={engine} uses libjpeg itself.")


def find_sources(
    data: Mapping[str, Any], *, embedded: Path, remote: RemoteSettings, report: Callable[[str], None]
) -> tuple[SourceSettings, ...]:
    """List the shards or pairs of every source.

    Args:
        data: the config group ``data``.
        embedded: folder of the embedded photos' shards.
        remote: how remote manifests and listings are read.
        report: told of failed tries.

    Raises:
        UserError: as `check_sources`, or a source has no shard.
    """
    check_sources(data)
    name = data["name"]
    kind, prompts = NAMES[name], bool(data.get("use_embedded_prompts", True))
    store = RemoteStore(remote, report)
    if name == "embedded":
        return (SourceSettings(name, 1.0, kind, locate_shards(embedded, store)),)
    if name == "paired" and data.get("lq"):
        from dit4sr.data.paired import match_pairs

        rules = data.get("match") or {}
        pairs = match_pairs(Path(data["lq"]), Path(data["hq"]), rules.get("lq", "(.+)"), rules.get("hq", "(.+)"))
        return (SourceSettings(name, 1.0, kind, pairs=pairs),)
    return tuple(
        SourceSettings(source, weight, kind, locate_shards(places, store), prompts=prompts)
        for source, weight, places in _weighted(data)
    )


def remote_settings(data: Mapping[str, Any], default_cache: Path) -> RemoteSettings:
    """The settings of remote reading in the config group ``data``: cache, cache_gb, retries, storage_options.

    Raises:
        UserError: a number is out of range.
    """
    retries, gigabytes = data.get("retries", 8), data.get("cache_gb", 100)
    if not isinstance(retries, int) or retries < 0:
        raise UserError(f"data.retries={retries} must be a whole number, at least 0.")
    if gigabytes <= 0:
        raise UserError(f"data.cache_gb={gigabytes} must be above 0.")
    return RemoteSettings(
        cache=Path(data.get("cache") or default_cache),
        cache_bytes=int(gigabytes * 1e9),
        retries=retries,
        options=dict(data.get("storage_options") or {}),
    )


def _places(data: Mapping[str, Any], key: str) -> list[str]:
    value = data.get(key)
    if not value:
        return []
    return [value] if isinstance(value, str) else [str(place) for place in value]


def _weighted(data: Mapping[str, Any]) -> list[tuple[str, float, Sequence[str]]]:
    """Name, weight and places of each source: of ``data.sources`` if it is set, else ``data.shards`` alone."""
    sources, shards = data.get("sources") or [], _places(data, "shards")
    if bool(sources) == bool(shards):
        folders = ", or data.lq=<folder> data.hq=<folder>" if data["name"] == "paired" else ""
        raise UserError(
            f"data={data['name']} needs data.shards=<folder, glob or URL of shards>{folders} (python prepare.py makes "
            "shards), or data.sources=[{shards: …, weight: …}, …]; not both."
        )
    if shards:
        return [(data["name"], 1.0, shards)]
    found: list[tuple[str, float, Sequence[str]]] = []
    for number, source in enumerate(sources):
        where = f"data.sources[{number}]"
        if not isinstance(source, Mapping) or set(source) - {"shards", "weight", "name"} or "shards" not in source:
            raise UserError(f"{where} must be {{shards: …, weight: …}}, with a name: … if you like.")
        weight = source.get("weight", 1.0)
        if isinstance(weight, bool) or not isinstance(weight, int | float) or not 0 < weight < float("inf"):
            raise UserError(f"{where}.weight={weight} must be a number above 0.")
        places = _places(source, "shards")
        if not places:
            raise UserError(f"{where}.shards is empty: name a folder, a glob or a URL of shards.")
        found.append((str(source.get("name") or f"source{number}"), float(weight), places))
    if len({name for name, _, _ in found}) < len(found):
        raise UserError("data.sources: two sources have the same name; give each its own.")
    return found

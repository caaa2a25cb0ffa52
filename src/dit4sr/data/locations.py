"""Where shards are: folders, globs, braces and URLs → the list of shards."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from urllib.parse import urlsplit

from dit4sr.data.remote import RemoteStore, Shard, Unavailable, check_url
from dit4sr.data.shards import MANIFEST, find_shards, parse_manifest
from dit4sr.errors import UserError


def locate_shards(where: str | Path | Sequence[str | Path], store: RemoteStore) -> tuple[Shard, ...]:
    """List the shards of one or several places.

    A place is a local folder, path or glob, or an http(s), s3 or gs URL of a shard, of a folder with a
    ``manifest.json`` (or one that the server lists), or with a glob; ``{000..999}`` and ``{a,b}`` are expanded.
    Order: as given, and sorted by name within a place.

    Raises:
        UserError: a place with no shard, a ``pipe:``, a protocol that is not read, or the same shard twice.
    """
    places = [where] if isinstance(where, str | Path) else list(where)
    if not places:
        raise UserError("data.shards is an empty list: name a folder, a glob or a URL of shards.")
    shards = tuple(shard for place in places for shard in _of_place(str(place), store))
    seen: set[str] = set()
    for shard in shards:
        if shard.location in seen:
            raise UserError(f"data.shards names {shard.location} twice: give a source more weight instead.")
        seen.add(shard.location)
    return shards


def check_place(place: str) -> None:
    """Refuse what is never read, before anything is asked of a disk or a server.

    Raises:
        UserError: a ``pipe:`` or a protocol that is not read.
    """
    if place.strip().startswith("pipe:"):
        raise UserError(f"data.shards={place}: pipe: runs a shell command and is refused; give a path or a URL.")
    if "://" in place and not place.startswith("file://"):
        check_url(place)


def _of_place(text: str, store: RemoteStore) -> Iterator[Shard]:
    check_place(text)
    text = text.removeprefix("file://")
    for place in _expanded(text):
        if "://" in place:
            yield from _of_url(place, store)
        else:
            yield from (Shard(str(path)) for path in find_shards(place))


def _expanded(text: str) -> list[str]:
    from braceexpand import braceexpand

    if Path(text).exists():  # a name that has braces of its own
        return [text]
    try:
        return list(braceexpand(text))
    except ValueError as error:
        raise UserError(f"data.shards={text}: its braces do not match; write {{000..999}} or {{a,b}}.") from error


def _of_url(url: str, store: RemoteStore) -> list[Shard]:
    is_glob = any(sign in url for sign in "*[")  # a ? begins the query of a URL
    if urlsplit(url).path.endswith(".tar") and not is_glob:
        return [Shard(url)]
    try:
        if is_glob:
            return [Shard(found) for found in store.glob(url)] or _nothing(url)
        folder = url.rstrip("/")
        for candidate in (folder, f"{folder}/train"):
            if (shards := _of_manifest(candidate, store)) is not None:
                return shards
        return [Shard(found) for found in store.glob(f"{folder}/*.tar")] or _nothing(url)
    except Unavailable as error:
        raise UserError(f"data.shards={url}: {error}.") from error


def _nothing(url: str) -> list[Shard]:
    raise UserError(
        f"no shard (*.tar) and no {MANIFEST} at {url}: name the shards as {url}/train-{{000000..000099}}.tar"
    )


def _of_manifest(folder: str, store: RemoteStore) -> list[Shard] | None:
    url = f"{folder}/{MANIFEST}"
    try:
        manifest = parse_manifest(store.read(url), url)
    except Unavailable as error:
        if error.permanent:
            return None
        raise
    return [
        Shard(f"{folder}/{entry['name']}", entry.get("samples"), entry.get("bytes"), entry.get("sha256"))
        for entry in manifest["shards"]
    ]

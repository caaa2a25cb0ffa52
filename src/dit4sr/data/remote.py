"""Shards on object storage: fetched through fsspec in pieces, each tried again when it fails, into a local cache.

A shard is fetched whole, because samples are then read from it in any order, and by several workers. It is
asked for in ranges of a few megabytes: what a cut connection loses is one range, and the next request goes on
where the last one ended. A server that ignores ranges is understood too.
"""

from __future__ import annotations

import hashlib
import os
import random
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar
from urllib.parse import urlsplit

from dit4sr.errors import UserError
from dit4sr.files import write_atomically

T = TypeVar("T")

PROTOCOLS = {"http": "aiohttp", "https": "aiohttp", "s3": "s3fs", "gs": "gcsfs", "gcs": "gcsfs"}
"""Protocol → the package that fsspec needs for it."""
PERMANENT_STATUSES = (400, 401, 403, 404, 410)


class Unavailable(Exception):  # noqa: N818
    """A remote file that cannot be had; ``permanent``: the server says so, otherwise every try has failed."""

    def __init__(self, message: str, *, permanent: bool) -> None:
        super().__init__(message)
        self.permanent = permanent


@dataclass(frozen=True)
class Shard:
    """A tar file: a local path or a URL, and what a manifest says of it (None where there is no manifest)."""

    location: str
    samples: int | None = None
    bytes: int | None = None
    sha256: str | None = None

    @property
    def remote(self) -> bool:
        """Whether it must be fetched."""
        return "://" in self.location


@dataclass(frozen=True)
class RemoteSettings:
    """How remote shards are fetched.

    Attributes:
        cache: folder of what has been fetched; several processes may share it.
        cache_bytes: above this, what was used longest ago is deleted.
        retries: tries after the first one of each request.
        first_wait, longest_wait: seconds before the second try; it doubles from try to try up to the longest.
        chunk: bytes asked for at once.
        options: for fsspec's file system of the protocol (``endpoint_url``, ``anon``, …).
    """

    cache: Path
    cache_bytes: int = 100 << 30
    retries: int = 8
    first_wait: float = 0.5
    longest_wait: float = 30.0
    chunk: int = 16 << 20
    options: Mapping[str, Any] = field(default_factory=dict)


class RemoteStore:
    """Reads files of http, https, s3 and gs URLs, with retries, and keeps shards in the cache.

    Args:
        settings: see `RemoteSettings`.
        report: told of failed tries, of the 1st, 2nd, 4th, 8th … since the start.
    """

    def __init__(self, settings: RemoteSettings, report: Callable[[str], None] = lambda line: None) -> None:
        self.settings = settings
        self.failures = 0
        self._report = report
        self._systems: dict[str, Any] = {}
        self._lock = threading.Lock()
        self._fetches: dict[Shard, _Fetch] = {}

    def read(self, url: str) -> bytes:
        """Return the whole of a small file; raises `Unavailable`."""
        system = self._system(url)
        return self._persistently(lambda: bytes(system.cat_file(url)), url)

    def glob(self, pattern: str) -> list[str]:
        """Return the URLs that match, sorted; none where the server lists nothing. Raises `Unavailable`."""
        system = self._system(pattern)
        found = self._persistently(lambda: list(system.glob(pattern)), pattern)
        return sorted(str(system.unstrip_protocol(name)) for name in found)

    def fetch_soon(self, shard: Shard) -> None:
        """Begin to fetch a shard in the background, so that `fetch` will not have to wait."""
        self._fetch(shard)

    def fetch(self, shard: Shard) -> Path:
        """Return the local copy of a shard, fetched first if it is not in the cache.

        Raises:
            Unavailable: it is not there, or all tries have failed.
        """
        path = self._fetch(shard).result()
        if not path.is_file():  # deleted to make room
            with self._lock:
                del self._fetches[shard]
            path = self._fetch(shard).result()
        return path

    def _fetch(self, shard: Shard) -> _Fetch:
        with self._lock:
            fetch = self._fetches.get(shard)
            if fetch is None:
                fetch = self._fetches[shard] = _Fetch(lambda: self._into_cache(shard))
            return fetch

    def _into_cache(self, shard: Shard) -> Path:
        from filelock import FileLock

        url, size, version = shard.location, shard.bytes, shard.sha256
        if size is None or version is None:
            # Without a manifest the server's word tells an old copy from a new one.
            size, version = self._describe(url)
        name = hashlib.blake2b(f"{url} {size} {version}".encode(), digest_size=8).hexdigest()
        path = self.settings.cache / f"{name}-{PurePosixPath(urlsplit(url).path).name}"
        path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(path.with_name(f".{name}.lock")):  # one process fetches, the others wait for its copy
            if path.is_file():
                os.utime(path)
            else:
                self._download(shard, size, path)
                self._make_room(keep=path)
        return path

    def _download(self, shard: Shard, size: int | None, path: Path) -> None:
        def whole() -> None:
            with write_atomically(path) as temporary:
                digest = hashlib.sha256()
                with open(temporary, "wb") as file:
                    for piece in self._pieces(shard.location, size):
                        file.write(piece)
                        digest.update(piece)
                if shard.sha256 is not None and digest.hexdigest() != shard.sha256:
                    raise OSError("the bytes are not those that the manifest lists")

        self._persistently(whole, shard.location, tries=2)

    def _pieces(self, url: str, size: int | None) -> Iterator[bytes]:
        system = self._system(url)
        if size is None:
            yield self._persistently(lambda: bytes(system.cat_file(url)), url)
            return
        position = 0
        while position < size:
            end = min(position + self.settings.chunk, size)
            piece = self._persistently(partial(_range, system, url, position, end, size), url)
            yield piece
            position += len(piece)

    def _describe(self, url: str) -> tuple[int | None, str]:
        """Size in bytes, if the server tells it, and what changes when the file does."""
        system = self._system(url)
        info = self._persistently(lambda: dict(system.info(url)), url)
        size = info.get("size")
        marks = (info.get(key) for key in ("ETag", "etag", "Last-Modified", "LastModified", "mtime", "updated"))
        return (None if size is None else int(size)), str(next((mark for mark in marks if mark), ""))

    def _make_room(self, keep: Path) -> None:
        files = [(path.stat(), path) for path in self.settings.cache.glob("*.tar") if not path.name.startswith(".")]
        total = sum(stat.st_size for stat, _ in files)
        for stat, path in sorted(files, key=lambda entry: entry[0].st_mtime):
            if total <= self.settings.cache_bytes:
                return
            if path != keep:
                path.unlink(missing_ok=True)
                total -= stat.st_size

    def _persistently(self, action: Callable[[], T], url: str, tries: int | None = None) -> T:
        tries = self.settings.retries + 1 if tries is None else tries
        for attempt in range(1, tries + 1):
            try:
                return action()
            except (UserError, Unavailable):
                raise
            except Exception as error:  # each file system has its own kinds
                cause = _chain(error)[-1]
                reason = " ".join(f"{type(cause).__name__} {cause}".split())
                if is_permanent(error):
                    raise Unavailable(f"{url} cannot be read ({reason})", permanent=True) from error
                self.failures += 1
                if self.failures & (self.failures - 1) == 0:  # 1, 2, 4, 8, …
                    self._report(f"{url}: try {attempt} of {tries} failed ({self.failures} in all so far): {reason}")
                if attempt == tries:
                    message = f"{url} cannot be read: {tries} tries failed, the last with {reason}"
                    raise Unavailable(message, permanent=False) from error
                wait = min(self.settings.longest_wait, self.settings.first_wait * 2 ** (attempt - 1))
                time.sleep(wait * self._jitter.uniform(0.5, 1.0))
        raise AssertionError

    @cached_property
    def _jitter(self) -> random.Random:
        return random.Random()  # not the global one: waiting must not change what a run draws

    def _system(self, url: str) -> Any:
        protocol = check_url(url)
        with self._lock:
            if protocol not in self._systems:
                self._systems[protocol] = _file_system(protocol, dict(self.settings.options))
            return self._systems[protocol]


class _Fetch:
    """A value that a background thread makes."""

    _slots = threading.BoundedSemaphore(4)

    def __init__(self, make: Callable[[], Path]) -> None:
        self._make = make
        self._value: Path | None = None
        self._error: Exception | None = None
        self._thread = threading.Thread(target=self._run, daemon=True)  # never keeps a worker from ending
        self._thread.start()

    def _run(self) -> None:
        with self._slots:
            try:
                self._value = self._make()
            except Exception as error:
                self._error = error

    def result(self) -> Path:
        self._thread.join()
        if self._error is not None:
            raise self._error
        assert self._value is not None
        return self._value


def check_url(url: str) -> str:
    """Return the protocol of a URL.

    Raises:
        UserError: it is none of `PROTOCOLS`.
    """
    protocol, separator, _ = url.partition("://")
    if not separator or protocol not in PROTOCOLS or "::" in url:
        raise UserError(
            f"data.shards={url}: shards are read from local paths, http(s)://, s3:// and gs://, and from nothing else."
        )
    return protocol


def _file_system(protocol: str, options: dict[str, Any]) -> Any:
    try:
        import fsspec

        if PROTOCOLS[protocol] == "aiohttp" and "client_kwargs" not in options:
            import aiohttp

            # The limits are on silence, not on the length of a transfer.
            options["client_kwargs"] = {"timeout": aiohttp.ClientTimeout(total=None, sock_connect=20, sock_read=60)}
        return fsspec.filesystem(protocol, **options)
    except ImportError as error:
        raise UserError(
            f"{protocol}:// needs the package {PROTOCOLS[protocol]}: pip install {PROTOCOLS[protocol]}"
        ) from error


def _range(system: Any, url: str, start: int, end: int, size: int) -> bytes:
    """The bytes from start to end; more of them where the server ignores ranges and has sent the whole file."""
    data = bytes(system.cat_file(url, start=start, end=end))
    if len(data) == end - start:
        return data
    if len(data) == size:
        return data[start:]
    raise OSError(f"{len(data)} bytes came in place of {end - start}")


def is_permanent(error: BaseException) -> bool:
    """Whether trying again is of no use: the server has answered that it will not give the file."""
    chain = _chain(error)
    for each in chain:
        if isinstance(status := getattr(each, "status", None), int):
            return status in PERMANENT_STATUSES
    # fsspec's http says FileNotFoundError for whatever went wrong underneath, and then names the cause.
    if any(isinstance(each, TimeoutError | ConnectionError) or "aiohttp" in type(each).__module__ for each in chain):
        return False
    return isinstance(error, FileNotFoundError | PermissionError)


def _chain(error: BaseException) -> list[BaseException]:
    """An error, its cause, the cause's cause, …"""
    chain = [error]
    while (cause := chain[-1].__cause__) is not None:
        chain.append(cause)
    return chain

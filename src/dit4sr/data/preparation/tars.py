"""Photos in tar shards of webdataset's layout, from anywhere; a shard with a pickle is refused."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from dit4sr.data.images import UnreadableImage, decode_image
from dit4sr.data.photos import Photo
from dit4sr.data.preparation.sources import Locator, Skipped, digest, readable
from dit4sr.data.shard_index import UnreadableShard, index_shard


class TarSource:
    """The images of shards, named ``<shard without .tar>/<key>``, with their ``.txt`` as caption."""

    unit = "photo"
    licence = "unknown: the shards' own"
    photos_per_unit: int | None = None

    def __init__(self, shards: Sequence[Path], folder: Path | None = None) -> None:
        """``folder``: where the shards were looked for at any depth, if they were."""
        self._folder = folder.resolve() if folder else None
        self._shards = sorted(shards, key=lambda path: path.as_posix())
        self._base = os.path.commonpath([str(path.parent) for path in shards])
        self.version = "tars"

    def locators(self) -> Iterator[Locator]:
        """Yield [shard, key, image's offset and size, caption's offset and size], from the tar headers alone.

        A broken shard gives one [shard, None, what is wrong].

        Raises:
            RefusedShard: a member may hold a pickle.
        """
        for path in self._shards:
            shard = os.path.relpath(path, self._base).replace(os.sep, "/")
            try:
                samples = index_shard(path)
            except UnreadableShard as error:
                yield [shard, None, str(error).partition(": ")[0]]
                continue
            for sample in samples:
                image, text = sample.image, sample.caption
                yield [shard, sample.key, *([image.offset, image.size] if image else [None, None])] + (
                    [text.offset, text.size] if text else [None, None]
                )

    def read(self, locator: Locator, number: int) -> Iterator[tuple[int, Photo | Skipped]]:
        """See `Source`."""
        shard, key = locator[:2]
        name = readable(f"{shard.removesuffix('.tar')}/{key}" if key is not None else shard)
        if key is None:
            yield number, Skipped(name, "unreadable shard", locator[2])
            return
        offset, size, text_offset, text_size = locator[2:]
        if offset is None:
            yield number, Skipped(name, "no image", "no PNG, JPEG or WebP member")
            return
        try:
            with open(os.path.join(self._base, shard), "rb") as file:
                file.seek(offset)
                data = file.read(size)
                caption = b""
                if text_offset is not None:
                    file.seek(text_offset)
                    caption = file.read(text_size)
            image = decode_image(data)
        except UnreadableImage as error:
            yield number, Skipped(name, "undecodable", str(error))
        except OSError as error:
            yield number, Skipped(name, "undecodable", f"cannot be read ({error.strerror})")
        else:
            text = caption.decode("utf-8-sig", "replace").strip()
            yield number, Photo(name, name, image, text, held_out=False, file_digest=digest(data))

    def holds(self, folder: Path) -> bool:
        """See `Source`."""
        folder = folder.resolve()
        if self._folder is not None and folder.is_relative_to(self._folder):
            return True
        return any(path.resolve().is_relative_to(folder / "train") for path in self._shards)

"""Photos of a Hugging Face data set: of the hub, of a folder that ``save_to_disk`` wrote, or of local files."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from dit4sr.data.images import UnreadableImage, decode_image
from dit4sr.data.photos import Photo
from dit4sr.data.preparation.settings import HubSettings
from dit4sr.data.preparation.sources import Locator, Skipped, digest
from dit4sr.errors import UserError

CAPTION_COLUMNS = ("caption", "text")
MOST_ROWS = 10_000_000  # of a file of a streamed data set, whose rows are numbered from it


class HubSource:
    """Rows of one split, in order.

    A data set is either downloaded once and then read by row, or streamed: then a unit of work is one of its
    files, since only a file's beginning can be found without reading what comes before.

    Args:
        name: id on the hub, a folder that ``Dataset.save_to_disk`` wrote, or a folder that ``load_dataset`` reads
            (parquet, imagefolder, webdataset …).
        settings: see `HubSettings`.

    Raises:
        UserError: ``datasets`` is not installed; no such data set, configuration, split or column.
    """

    def __init__(self, name: str, settings: HubSettings) -> None:
        if find_spec("datasets") is None:
            raise UserError("source=hf:… needs the package datasets: pip install datasets")
        self._name, self._settings = name, settings
        self._rows = self._open()
        features = self._rows.features
        if features is None:
            raise UserError(f"source=hf:{name}: its columns are unknown while streaming: pass hf.streaming=false.")
        self._image = self._column(settings.image, "image", features)
        self._caption = self._column(settings.caption, "caption", features)
        import datasets

        if isinstance(features[self._image], datasets.Image):
            # The bytes of the files: only our own decoder, with its limits, ever looks at them.
            self._rows = self._rows.cast_column(self._image, datasets.Image(decode=False))
        wanted = [column for column in (self._image, self._caption) if column]
        self._rows = self._rows.select_columns(wanted)
        self.licence = str(getattr(self._rows.info, "license", "") or "unknown: the data set's own")
        self.photos_per_unit: int | None = 1 if settings.streaming else None
        self.unit = "file" if settings.streaming else "photo"
        facts = [name, settings.config, settings.split, settings.revision, self._image, self._caption]
        self.version = repr([*facts, sorted(features), *_local_files(name)])

    def locators(self) -> Iterator[Locator]:
        """Yield [row], or streaming [file, files]."""
        if self._settings.streaming:
            yield from ([number, self._rows.num_shards] for number in range(self._rows.num_shards))
        else:
            yield from ([row] for row in range(len(self._rows)))

    def read(self, locator: Locator, number: int) -> Iterator[tuple[int, Photo | Skipped]]:
        """See `Source`; streaming yields all photos of a file."""
        if not self._settings.streaming:
            yield number, self._photo(self._rows[locator[0]], f"{self._settings.split}/{locator[0]}")
            return
        rows = self._rows.shard(num_shards=locator[1], index=locator[0])
        for k, row in enumerate(rows):
            yield number * MOST_ROWS + k, self._photo(row, f"{self._settings.split}/{locator[0]}/{k}")

    def holds(self, folder: Path) -> bool:
        """See `Source`."""
        return os.path.isdir(self._name) and folder.resolve().is_relative_to(Path(self._name).resolve())

    def _photo(self, row: Mapping[str, Any], name: str) -> Photo | Skipped:
        value, caption = row[self._image], row.get(self._caption) if self._caption else None
        data = value.get("bytes") if isinstance(value, Mapping) else value
        try:
            if data is None and isinstance(value, Mapping) and value.get("path"):
                data = Path(value["path"]).read_bytes()
            if not isinstance(data, bytes):
                return Skipped(name, "no image", f"column {self._image} is empty")
            image = decode_image(data)
        except UnreadableImage as error:
            return Skipped(name, "undecodable", str(error))
        except OSError as error:
            return Skipped(name, "undecodable", f"cannot be read ({error.strerror})")
        if isinstance(caption, list):
            caption = caption[0] if caption else None
        return Photo(name, name, image, str(caption or "").strip(), held_out=False, file_digest=digest(data))

    def _open(self) -> Any:
        import datasets

        s = self._settings
        datasets.disable_progress_bars()
        where = f"source=hf:{self._name}"
        try:
            if any(os.path.isfile(os.path.join(self._name, file)) for file in ("state.json", "dataset_dict.json")):
                found = datasets.load_from_disk(self._name)
                if s.streaming:
                    raise UserError(f"{where} was written by save_to_disk and is read by row: pass hf.streaming=false.")
                if isinstance(found, datasets.DatasetDict):
                    if s.split not in found:
                        raise UserError(f"{where} has no split {s.split}: pass hf.split={'|'.join(found)}.")
                    found = found[s.split]
                return found
            return datasets.load_dataset(
                self._name, s.config, split=s.split, revision=s.revision, streaming=s.streaming
            )
        except UserError:
            raise
        except Exception as error:  # datasets raises errors of every library it stands on
            reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            raise UserError(f"{where} (hf.split={s.split}) cannot be opened: {reason[:300]}") from error

    def _column(self, wanted: str | None, kind: str, features: Mapping[str, Any]) -> str:
        """The column of the images, or of the captions ("" for none)."""
        import datasets

        if wanted is not None:
            if wanted not in features:
                raise UserError(f"hf.{kind}={wanted}: the data set has the columns {', '.join(features)}.")
            return wanted
        if kind == "caption":
            return next((name for name in CAPTION_COLUMNS if name in features), "")
        images = [name for name, feature in features.items() if isinstance(feature, datasets.Image)]
        if len(images) == 1:
            return images[0]
        several = f"several image columns ({', '.join(images)})" if images else "no image column"
        raise UserError(f"source=hf:{self._name} has {several}: pass hf.image=<one of {', '.join(features)}>.")


def _local_files(name: str) -> list[tuple[str, int]]:
    """Names and sizes of a local data set's files."""
    if not os.path.isdir(name):
        return []
    files = sorted(path for path in Path(name).rglob("*") if path.is_file() and not path.name.startswith("."))
    return [(path.relative_to(name).as_posix(), path.stat().st_size) for path in files]

"""The captions of a run's shards, read without their images."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

from dit4sr.data.shard_index import RefusedShard, UnreadableShard, index_shard
from dit4sr.data.sources import SourceSettings


def captions_of(sources: Iterable[SourceSettings]) -> Iterator[str]:
    """Yield the captions of local shards, as training sees them; those that are embedded already are left out.

    What cannot be read is left to training, which counts and reports it; remote shards are not fetched.

    Raises:
        RefusedShard: a shard has a member that could hold a pickle.
    """
    for source in sources:
        for shard in source.shards:
            if not shard.remote:
                yield from _captions(Path(shard.location), source.prompts)


def _captions(path: Path, embedded: bool) -> Iterator[str]:
    try:
        index = index_shard(path)
        with open(path, "rb") as file:
            for entry in index:
                if entry.caption is None or (embedded and entry.prompt is not None):
                    continue
                file.seek(entry.caption.offset)
                yield file.read(entry.caption.size).decode("utf-8", "ignore").strip()
    except RefusedShard:
        raise
    except (UnreadableShard, OSError):
        return

"""The LightningDataModule of training batches, and the pairs that validation restores."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from lightning.pytorch import LightningDataModule

from dit4sr.data.augmentation import Augmentation
from dit4sr.data.degradations import DegradationPreset
from dit4sr.data.images import UnreadableImage, read_image
from dit4sr.data.loading import Batch, LoaderSettings, TrainingBatches
from dit4sr.data.prepare import ensure_embedded
from dit4sr.data.shards import find_shards
from dit4sr.errors import UserError


class SRDataModule(LightningDataModule):
    """Data of a run.

    ``start`` is the number of samples (over all ranks) that training has consumed; set it before
    ``train_dataloader`` is called, to resume.

    Args:
        data: the config group ``data``: name (embedded or shards), shards, batch_size (of all ranks),
            workers, lanes, shuffle_buffer, prompt_drop, augmentation, and optionally max_bad_share.
        degradation: how the low-quality images are made.
        seed: the run's seed.
        crop: side of a training crop in HR pixels.
        paths: the config group ``paths``; its ``data`` is the folder of the embedded photos' shards.
        rank, world_size: of this process; by default the attached trainer's, else 0 and 1.
        repeat_first_batch: yield the first batch for ever, to see whether a network can fit it.
    """

    def __init__(
        self,
        data: Mapping[str, Any],
        degradation: DegradationPreset,
        *,
        seed: int,
        crop: int,
        paths: Mapping[str, Any],
        rank: int | None = None,
        world_size: int | None = None,
        repeat_first_batch: bool = False,
    ) -> None:
        super().__init__()
        if data["name"] not in ("embedded", "shards"):
            raise UserError(f"unknown data {data['name']!r}: choose embedded or shards.")
        if data["name"] == "shards" and not data.get("shards"):
            raise UserError("data=shards needs data.shards=<folder or glob of shards>: python prepare.py makes some.")
        self.data = data
        self.degradation = degradation
        self.seed = seed
        self.crop = crop
        self.embedded = Path(paths["data"]) / "embedded"
        self.start = 0
        self.repeat_first_batch = repeat_first_batch
        self._rank = rank
        self._world_size = world_size

    def prepare_data(self) -> None:
        """Make the shards and the benchmark of the embedded photos, unless they are there."""
        ensure_embedded(self.embedded.parent)

    def train_dataloader(self) -> Iterable[Batch]:
        """Endless local batches from global sample ``start`` on; see `TrainingBatches`."""
        trainer = self.trainer
        rank = self._rank if self._rank is not None else (trainer.global_rank if trainer else 0)
        world_size = self._world_size if self._world_size is not None else (trainer.world_size if trainer else 1)
        where = self.embedded / "train" if self.data["name"] == "embedded" else self.data["shards"]
        batches = TrainingBatches(
            LoaderSettings(
                shards=find_shards(where),
                preset=self.degradation,
                augmentation=Augmentation.from_config(self.data["augmentation"]),
                seed=self.seed,
                crop=self.crop,
                batch_size=self.data["batch_size"],
                prompt_drop=self.data["prompt_drop"],
                lanes=self.data["lanes"],
                shuffle_buffer=self.data["shuffle_buffer"],
                max_bad_share=self.data.get("max_bad_share", 0.05),
                workers=self.data["workers"],
                rank=rank,
                world_size=world_size,
                start=self.start,
            )
        )
        return itertools.repeat(next(iter(batches))) if self.repeat_first_batch else batches


def validation_pairs(benchmark: Path) -> list[dict[str, Any]]:
    """Read a benchmark folder: test_LR/<name>.png, test_HR/<name>.png and prompts/<name>.txt, paired by name.

    Returns:
        dicts of name: str; lq: uint8 (h, w, 3); hq: uint8 (H, W, 3); prompt: str, "" without a file. Sorted.

    Raises:
        UserError: there is no pair, or an image is missing or unreadable.
    """
    names = sorted(path.stem for path in (benchmark / "test_LR").glob("*.png"))
    if not names:
        raise UserError(f"no image in {benchmark / 'test_LR'}: run python prepare.py.")
    pairs = []
    for name in names:
        prompt = benchmark / "prompts" / f"{name}.txt"
        try:
            lq = read_image(benchmark / "test_LR" / f"{name}.png")
            hq = read_image(benchmark / "test_HR" / f"{name}.png")
        except (OSError, UnreadableImage) as error:
            raise UserError(f"pair {name} of {benchmark}: {error}. Run python prepare.py overwrite=true.") from error
        text = prompt.read_text(encoding="utf-8").strip() if prompt.is_file() else ""
        pairs.append({"name": name, "lq": lq, "hq": hq, "prompt": text})
    return pairs

"""The LightningDataModule of training batches, and the pairs that validation restores."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningDataModule

from dit4sr.data.augmentation import Augmentation
from dit4sr.data.captions import captions_of
from dit4sr.data.degradations import DegradationPreset
from dit4sr.data.images import UnreadableImage, read_image
from dit4sr.data.loading import Batch, LoaderSettings, TrainingBatches, warn
from dit4sr.data.on_device import degrade_patches
from dit4sr.data.prepare import ensure_embedded
from dit4sr.data.sources import check_sources, find_sources, remote_settings
from dit4sr.data.transfer import batch_to_device
from dit4sr.errors import UserError


class SRDataModule(LightningDataModule):
    """Data of a run.

    ``start`` is the number of samples (over all ranks) that training has consumed; set it before
    ``train_dataloader`` is called, to resume.

    Args:
        data: the config group ``data``, a file of configs/data.
        degradation: how the low-quality images are made.
        seed: the run's seed.
        crop: side of a training crop in HR pixels.
        paths: the config group ``paths``; its ``data`` is the folder of the embedded photos' shards.
        rank, world_size: of this process; by default the attached trainer's, else 0 and 1.
        latent_scale: HR pixels a latent pixel, for data=paired_latent.
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
        latent_scale: int = 8,
        repeat_first_batch: bool = False,
    ) -> None:
        super().__init__()
        check_sources(data)
        self.data = data
        self.degradation = degradation
        self.seed = seed
        self.crop = crop
        self.embedded = Path(paths["data"]) / "embedded"
        self.start = 0
        self.latent_scale = latent_scale
        self.batches: TrainingBatches | None = None
        self.source_names: tuple[str, ...] = ()
        self.repeat_first_batch = repeat_first_batch
        self._rank = rank
        self._world_size = world_size

    def prepare_data(self) -> None:
        """Make the shards and the benchmark of the embedded photos, unless they are there."""
        ensure_embedded(self.embedded.parent)

    def captions(self) -> Iterator[str]:
        """The captions of the run's local shards that training will have to embed; see `captions_of`."""
        remote = remote_settings(self.data, self.embedded.parent / "cache")
        yield from captions_of(find_sources(self.data, embedded=self.embedded / "train", remote=remote, report=warn))

    def train_dataloader(self) -> Iterable[Batch]:
        """Endless local batches from global sample ``start`` on; see `TrainingBatches`."""
        trainer = self.trainer
        rank = self._rank if self._rank is not None else (trainer.global_rank if trainer else 0)
        world_size = self._world_size if self._world_size is not None else (trainer.world_size if trainer else 1)
        remote = remote_settings(self.data, self.embedded.parent / "cache")
        sources = find_sources(self.data, embedded=self.embedded / "train", remote=remote, report=warn)
        self.source_names = tuple(source.name for source in sources)
        self.batches = TrainingBatches(
            LoaderSettings(
                sources=sources,
                preset=self.degradation,
                augmentation=Augmentation.from_config(self.data["augmentation"]),
                seed=self.seed,
                crop=self.crop,
                batch_size=self.data["batch_size"],
                prompt_drop=self.data["prompt_drop"],
                lanes=self.data["lanes"],
                shuffle_buffer=self.data["shuffle_buffer"],
                order=self.data.get("order", "shuffled"),
                engine=self.data.get("engine", "worker"),
                scale=self.data.get("scale", 4),
                latent_scale=self.latent_scale,
                max_bad_share=self.data.get("max_bad_share", 0.05),
                remote=remote,
                workers=self.data["workers"],
                rank=rank,
                world_size=world_size,
                start=self.start,
            )
        )
        return itertools.repeat(next(iter(self.batches))) if self.repeat_first_batch else self.batches

    def transfer_batch_to_device(self, batch: Batch, device: torch.device, dataloader_idx: int) -> Batch:
        return batch_to_device(batch, device)

    def on_after_batch_transfer(self, batch: Batch, dataloader_idx: int) -> Batch:
        """Degrade on the device, where ``data.engine=device`` has left the patches as they are."""
        if "patch" not in batch:
            return batch
        margin = Augmentation.from_config(self.data["augmentation"]).margin
        jpeg = self.data.get("jpeg", "libjpeg")
        return degrade_patches(batch, self.degradation, seed=self.seed, crop=self.crop, margin=margin, jpeg=jpeg)


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

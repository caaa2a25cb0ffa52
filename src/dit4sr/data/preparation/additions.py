"""What a patch may get beside its photo's caption: a caption of its own, its pair, latents, an embedded prompt."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator
from dataclasses import replace
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dit4sr.data.degradations import degrade
from dit4sr.data.images import encode_png
from dit4sr.data.photos import Photo
from dit4sr.data.preparation.settings import PrepareSettings
from dit4sr.data.shard_index import LATENT_EXTENSION, PROMPT_EXTENSION
from dit4sr.data.shards import ShardSample
from dit4sr.errors import UserError
from dit4sr.randomness import normal, sample_seed

if TYPE_CHECKING:
    import torch

BATCH = 8
"""Patches of one photo that a network sees at once. Fixed, because it may show in the last bits."""

LOOKING = ("llava", "fixed", "none")
"""Captioners that describe an image; the others read text files."""


class Additions:
    """Adds to patches what the settings ask for; networks are loaded at the first patch that needs them.

    Args:
        settings: of the content.
        device: of the networks: auto, cpu, cuda, …
    """

    def __init__(self, settings: PrepareSettings, device: str = "auto") -> None:
        self._settings = settings
        self._wanted_device = device
        self._embedded: dict[str, bytes] = {}
        name = settings.captioner["name"]
        self._none = (
            settings.content == "hq"
            and not settings.embed_prompts
            and name == "beside"
            and not settings.captioner.get("drop_optics")
        )

    def added(self, photo: Photo, patches: Iterable[ShardSample]) -> Iterator[ShardSample]:
        """Yield the patches of one photo with all that is to be added."""
        if self._none:
            yield from patches
            return
        patches = iter(patches)
        while batch := list(islice(patches, BATCH)):
            batch = self._captioned(photo, batch)
            if self._settings.content != "hq":
                batch = self._paired(photo, batch)
            if self._settings.embed_prompts:
                batch = [self._with_prompt(patch) for patch in batch]
            yield from batch

    def _captioned(self, photo: Photo, batch: list[ShardSample]) -> list[ShardSample]:
        captioner = self._settings.captioner
        name = captioner["name"]
        if name == "folder":
            text = _read_caption(Path(captioner["path"]).expanduser(), photo, bool(captioner.get("allow_missing")))
            batch = [replace(patch, caption=text) for patch in batch]
        elif name in LOOKING and not (self._settings.keep_captions and name == "llava" and photo.caption):
            captions = self._captioner.caption([patch.image for patch in batch])
            return [replace(patch, caption=text) for patch, text in zip(batch, captions, strict=True)]
        if name in ("folder", "beside") and captioner.get("drop_optics"):
            from dit4sr.prompts.optics import drop_optics

            batch = [replace(patch, caption=drop_optics(patch.caption)) for patch in batch]
        return batch

    def _paired(self, photo: Photo, batch: list[ShardSample]) -> list[ShardSample]:
        """The pair in place of the patch: HQ is the degradation's target, and the LQ image is added."""
        s = self._settings
        made = []
        for patch in batch:
            hq, lq = degrade(patch.image, s.degradation, sample_seed(s.seed, 0, f"degradation of {patch.key}"))
            made.append(replace(patch, image=hq, members={**patch.members, "lq.png": encode_png(lq)}))
            if s.content == "paired_latent":
                made[-1] = replace(
                    made[-1], members={**made[-1].members, LATENT_EXTENSION: self._latents(patch.key, hq, lq)}
                )
        return made

    def _latents(self, key: str, hq: Any, lq: Any) -> bytes:
        """hq and lq (C, h, w): samples of the autoencoder's posterior at the pair, LQ upsampled to HQ's size."""
        import torch
        from safetensors.torch import save

        from dit4sr.images import from_hwc, upsample_bicubic

        s, vae = self._settings, self._autoencoder
        shape = (vae.channels, hq.shape[0] // vae.scale, hq.shape[1] // vae.scale)
        image, low = from_hwc(hq), upsample_bicubic(from_hwc(lq), *hq.shape[:2])
        tensors = {}
        with torch.inference_mode(), _one_thread():
            for name, picture in (("hq", image), ("lq", low)):
                noise = normal(s.seed, [0], f"{name} posterior of {key}", shape)
                latent = vae.encode(picture.to(self._device), noise.to(self._device))
                tensors[name] = latent[0].to("cpu", getattr(torch, s.latent_dtype)).contiguous()
        return save(tensors)

    def _with_prompt(self, patch: ShardSample) -> ShardSample:
        """Add the embedded caption, bfloat16: tokens (M, W) and pooled (P,)."""
        import torch

        from dit4sr.prompts import embedding_to_bytes

        known = self._embedded.get(patch.caption)
        if known is None:
            with torch.inference_mode(), _one_thread():
                known = embedding_to_bytes(self._text_encoder.encode([patch.caption]), torch.bfloat16, patch.caption)
            if len(self._embedded) >= 2 * BATCH:  # a photo's own captions; of other photos they seldom come again
                self._embedded.clear()
            self._embedded[patch.caption] = known
        return replace(patch, members={**patch.members, PROMPT_EXTENSION: known})

    def identities(self, memo: str | None) -> dict[str, str]:
        """Which networks the additions are made by, weights by their content; {} where there are none.

        Args:
            memo: folder that remembers hashes of weights; None for none.
        """
        found = {}
        folder = Path(memo) / "weights" if memo else None
        if self._settings.embed_prompts:
            found["text_encoder"] = self._text_encoder.identity(folder)
        if self._settings.content == "paired_latent":
            found["autoencoder"] = weights_digest(self._autoencoder)
        return found

    def check(self) -> None:
        """Load what is needed and refuse what cannot work, before any photo is read.

        Raises:
            UserError: weights that are not there, or a patch that is no whole number of latent pixels.
        """
        if self._settings.content == "paired_latent" and self._settings.patch % self._autoencoder.scale:
            raise UserError(
                f"patch={self._settings.patch} must be a multiple of {self._autoencoder.scale}, the pixels of a latent."
            )
        if self._settings.captioner["name"] in LOOKING:
            self._captioner  # noqa: B018 - built, not yet loaded

    @cached_property
    def _device(self) -> torch.device:
        import torch

        wanted = self._wanted_device
        try:
            return torch.device(("cuda" if torch.cuda.is_available() else "cpu") if wanted == "auto" else wanted)
        except RuntimeError as error:
            raise UserError(f"device={wanted}: choose auto, cpu or cuda.") from error

    @cached_property
    def _captioner(self) -> Any:
        from dit4sr.prompts.captioners import build_captioner

        return build_captioner(self._settings.captioner, self._device)

    @cached_property
    def _autoencoder(self) -> Any:
        from dit4sr.autoencoders import build_autoencoder

        assert self._settings.backbone is not None
        vae: Any = build_autoencoder(self._settings.backbone["autoencoder"], self._settings.backbone["pretrained"])
        return vae.requires_grad_(False).eval().to(self._device)

    @cached_property
    def _text_encoder(self) -> Any:
        from dit4sr.prompts import build_text_encoder

        assert self._settings.backbone is not None
        encoder = build_text_encoder(self._settings.backbone["text_encoder"], self._settings.backbone["pretrained"])
        encoder.to(self._device)
        return encoder


def _read_caption(folder: Path, photo: Photo, allow_missing: bool) -> str:
    """The text of ``<name>.txt``, or of ``<last part of the name>.txt``, in a folder of captions."""
    name = Path(photo.scene)
    for candidate in (folder / f"{name}.txt", folder / f"{name.name}.txt"):
        if candidate.is_file():
            return candidate.read_text(encoding="utf-8-sig", errors="replace").strip()
    if allow_missing:
        return ""
    raise UserError(
        f"captioner.path={folder} has no {name.name}.txt for {photo.name}: "
        "add it, or pass captioner.allow_missing=true."
    )


def weights_digest(network: Any) -> str:
    """SHA-256 of a network's parameters and buffers, and of its config."""
    import torch

    digest = hashlib.sha256(json.dumps(getattr(getattr(network, "model", None), "config", {}), default=str).encode())
    tensors = {**dict(network.named_parameters()), **dict(network.named_buffers())}
    for name in sorted(tensors):
        value = tensors[name].detach().cpu().contiguous()
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        digest.update(value.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


class _one_thread:  # noqa: N801 - used as a context manager
    """Sums in one order, whatever the machine's cores; processes are what runs in parallel."""

    def __enter__(self) -> None:
        import torch

        self._threads = torch.get_num_threads()
        torch.set_num_threads(1)

    def __exit__(self, *_: object) -> None:
        import torch

        torch.set_num_threads(self._threads)

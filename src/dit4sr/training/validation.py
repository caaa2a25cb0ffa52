"""Validation: the held-out loss by σ, and held-out photos restored, with the averaged weights."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import lightning
import numpy as np
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import WandbLogger
from PIL import Image

from dit4sr import flow
from dit4sr.data.datamodule import validation_pairs
from dit4sr.files import write_atomically
from dit4sr.images import from_hwc, to_hwc, upsample_bicubic
from dit4sr.randomness import normal, sample_seed
from dit4sr.restoration.restorer import Restorer, TileSettings
from dit4sr.restoration.sampler_settings import SamplerSettings
from dit4sr.sampling import TRAIN_TIMESTEPS, TiledNetwork
from dit4sr.training.callbacks import Checkpoints, due
from dit4sr.training.compiling import as_written
from dit4sr.training.module import DiT4SRModule, encode_pair
from dit4sr.training.sharding import Sharded

Pair = dict[str, Any]
"""See :func:`dit4sr.data.datamodule.validation_pairs`."""

SIGMA_BINS = (0.125, 0.375, 0.625, 0.875)
"""Centres of the bins by which the held-out loss is reported."""


class HeldOutValidation(Callback):
    """Every n steps and at the end: loss by σ, PSNR and SSIM of restored photos, and a picture.

    Always the same photos, noise and σ, so that two validations differ by the weights alone;
    its time does not grow with the run.

    Args:
        benchmark: folder with ``test_LR``, ``test_HR`` and ``prompts``.
        samples: number of photos.
        every: steps between validations.
        steps: of the whole run.
        sampler: configs/sampler.
        tile: the backbone's tile.
        folder: where the pictures go.
        checkpoints: told of the held-out loss, to keep the best.
    """

    def __init__(
        self,
        *,
        benchmark: Path,
        samples: int,
        every: int,
        steps: int,
        sampler: Mapping[str, Any],
        tile: Mapping[str, Any],
        folder: Path,
        checkpoints: Checkpoints | None,
    ) -> None:
        self.benchmark, self.samples, self.every, self.steps = benchmark, samples, every, steps
        self.sampler = SamplerSettings.from_config(sampler)
        self.tile = TileSettings(**tile)
        self.folder, self.checkpoints = folder, checkpoints
        self.validated_at = -1

    def on_train_batch_end(self, trainer: lightning.Trainer, pl_module: Any, *args: Any) -> None:
        step = trainer.global_step
        if step != self.validated_at and due(step, self.every, self.steps):
            self.validated_at = step
            self.validate(trainer, pl_module, step)

    def validate(self, trainer: lightning.Trainer, module: DiT4SRModule, step: int) -> None:
        """Run on the first rank, and where the network is sharded on all of them; log to every logger."""
        metrics: dict[str, float] = {}
        if trainer.is_global_zero or isinstance(trainer.strategy, Sharded):
            pairs = validation_pairs(self.benchmark)[: self.samples]
            if module.fixed_prompt is not None:
                pairs = [{**pair, "prompt": module.fixed_prompt} for pair in pairs]
            module.network.eval()
            # DTensors cannot be copied in inference mode, nor into.
            mode = torch.no_grad if isinstance(trainer.strategy, Sharded) else torch.inference_mode
            with module.ema.applied(module.network), mode(), as_written():
                metrics |= self.losses(module, pairs)
                restored = self.restore(module, pairs)
            module.network.train()
        if trainer.is_global_zero:
            metrics |= self.fidelity(pairs, restored)
            sheet = self.sheet(pairs, restored, step)
            for logger in trainer.loggers:
                logger.log_metrics(metrics, step)
                if isinstance(logger, WandbLogger):
                    logger.log_image("val/restored", [sheet], step, caption=["input, bicubic, restored, ground truth"])
                    # Of one size, or W&B's page distorts them.
                    triples = [(enlarged(p), image, p["hq"]) for p, image in zip(pairs, restored, strict=True)]
                    captions = [f"{n}: {what}" for n in range(len(pairs)) for what in ("LR", "restored", "HR")]
                    logger.log_image("val/pictures", [x for t in triples for x in t], step, caption=captions)
        loss = trainer.strategy.broadcast(metrics.get("val/loss", float("nan")))
        if self.checkpoints is not None:
            self.checkpoints.validated(trainer, loss)

    def prompts(self, fixed: str | None) -> list[str]:
        """Every prompt that a validation embeds; ``fixed`` stands for the photos' own."""
        pairs = validation_pairs(self.benchmark)[: self.samples]
        own = [pair["prompt"] for pair in pairs] if fixed is None else [fixed]
        return [*own, *(self.sampler.positive(prompt) for prompt in own), self.sampler.negative_prompt]

    def losses(self, module: DiT4SRModule, pairs: list[Pair]) -> dict[str, float]:
        """``val/loss`` (σ²·‖v̂−v‖², mean over the bins) and ``val/velocity_<σ>`` by bin."""
        per_bin: dict[float, list[float]] = {sigma: [] for sigma in SIGMA_BINS}
        network = TiledNetwork(module.network, self.tile.size, self.tile.overlap, self.sampler.tile_batch)
        for number, pair in enumerate(pairs):
            hq, lq = (torch.from_numpy(x).permute(2, 0, 1)[None].to(module.device) for x in (pair["hq"], pair["lq"]))
            z, lr_latent = encode_pair(module.autoencoder, hq, lq, None)
            text = module.text_encoder.encode([pair["prompt"]]).to(module.device, torch.float32)
            eps = normal(module.seed, [number], "validation", tuple(z.shape[1:])).to(module.device)
            for centre in SIGMA_BINS:
                sigma = torch.full((1,), centre, device=module.device)
                z_t = flow.interpolate(z, eps, sigma)
                velocity = network(z_t, lr_latent, sigma * TRAIN_TIMESTEPS, text.tokens, text.pooled)
                per_bin[centre].append(float(flow.velocity_loss(velocity, z, eps)))
        velocity_loss = {sigma: float(np.mean(values)) for sigma, values in per_bin.items()}
        return {
            "val/loss": float(np.mean([sigma**2 * value for sigma, value in velocity_loss.items()])),
            **{f"val/velocity_{sigma}": value for sigma, value in velocity_loss.items()},
        }

    def restore(self, module: DiT4SRModule, pairs: list[Pair]) -> list[np.ndarray]:
        """One sample a photo."""
        restorer = Restorer(
            network=module.network,
            autoencoder=module.autoencoder,
            text_encoder=module.text_encoder,
            sampler=self.sampler,
            tile=self.tile,
            device=module.device,
            patch=module.network.config.patch_size,
        )
        return [
            restorer.restore(
                pair["lq"],
                pair["prompt"],
                seed=sample_seed(module.seed, number, "validation sample"),
                upscale=pair["hq"].shape[0] / pair["lq"].shape[0],
            )
            for number, pair in enumerate(pairs)
        ]

    def fidelity(self, pairs: list[Pair], restored: list[np.ndarray]) -> dict[str, float]:
        """PSNR and SSIM on Y, means over the photos."""
        from dit4sr.evaluation.metrics import psnr_y, ssim_y

        return {
            f"val/{name}": float(np.mean([metric(r, p["hq"]) for r, p in zip(restored, pairs, strict=True)]))
            for name, metric in (("psnr", psnr_y), ("ssim", ssim_y))
        }

    def sheet(self, pairs: list[Pair], restored: list[np.ndarray], step: int) -> Image.Image:
        """A row a photo: input, bicubic, restored, ground truth; also written to the run's folder."""
        rows = []
        for pair, image in zip(pairs, restored, strict=True):
            height, width = pair["hq"].shape[:2]
            bicubic = to_hwc(upsample_bicubic(from_hwc(pair["lq"]), height, width))
            rows.append(np.hstack([enlarged(pair), bicubic, image, pair["hq"]]))
        width = max(row.shape[1] for row in rows)
        rows = [np.pad(row, ((0, 0), (0, width - row.shape[1]), (0, 0)), constant_values=255) for row in rows]
        sheet = Image.fromarray(np.vstack(rows))
        with write_atomically(self.folder / f"step_{step:07d}.png") as temporary:
            sheet.save(temporary)
        return sheet


def enlarged(pair: Pair) -> np.ndarray:
    """A pair's LR image in the size of its HR image, (H, W, 3) uint8, by repeating pixels."""
    height, width = pair["hq"].shape[:2]
    return np.asarray(Image.fromarray(pair["lq"]).resize((width, height), Image.Resampling.NEAREST))

"""The LightningModule. It only wires: loss, sampling and data are functions elsewhere."""

from __future__ import annotations

import math
from collections.abc import Mapping
from contextlib import ExitStack
from typing import Any

import lightning
import torch
from torch import Tensor

from dit4sr import flow
from dit4sr.autoencoders import Autoencoder
from dit4sr.data.transfer import to_device
from dit4sr.errors import UserError
from dit4sr.images import to_unit, upsample_bicubic
from dit4sr.models.attention_kernel import attention_kernel
from dit4sr.models.build import Network
from dit4sr.prompts import TextEncoder
from dit4sr.randomness import normal
from dit4sr.sampling import TRAIN_TIMESTEPS
from dit4sr.training.choices import LOSSES
from dit4sr.training.compiling import compile_network
from dit4sr.training.ema import ExponentialMovingAverage
from dit4sr.training.optimizers import build_optimizer, skips_on_device
from dit4sr.training.precomputed import embed_prompts, precompute_prompts, stored_latents
from dit4sr.training.sharding import Sharded, shard_network, whole


def learning_rate_factor(step: int, *, steps: int, warmup: int, schedule: str) -> float:
    """What the learning rate is multiplied by at ``step``: linear warm-up, then constant or a cosine to zero.

    Raises:
        UserError: for an unknown schedule.
    """
    if step < warmup:
        return (step + 1) / warmup
    if schedule == "constant":
        return 1.0
    if schedule == "cosine":
        return 0.5 + 0.5 * math.cos(math.pi * min(1.0, (step - warmup) / max(1, steps - warmup)))
    raise UserError(f"training.schedule={schedule!r}: choose constant or cosine")


def encode_pair(autoencoder: Autoencoder, hq: Tensor, lq: Tensor, posterior: Tensor | None) -> tuple[Tensor, Tensor]:
    """Latents of HR and of the upsampled LR.

    Args:
        hq: uint8 (B, 3, H, W).
        lq: uint8 (B, 3, h, w), upsampled bicubically to H×W before encoding.
        posterior: (2, B, C, H/scale, W/scale) normal draws for the autoencoder's posterior.

    Returns:
        z and the LR latent, both (B, C, H/scale, W/scale).
    """
    upsampled = upsample_bicubic(to_unit(lq), *hq.shape[-2:])
    noise_hq, noise_lq = (None, None) if posterior is None else posterior
    return autoencoder.encode(to_unit(hq), noise_hq), autoencoder.encode(upsampled, noise_lq)


class DiT4SRModule(lightning.LightningModule):
    """Flow-matching training of any network that has DiT4SR's call.

    Every random number of sample i follows from (seed, i): neither ranks, workers nor a
    restart change σ or ε.

    Args:
        network: see :mod:`dit4sr.models`; trainable parameters have ``requires_grad``.
        autoencoder: frozen.
        text_encoder: frozen.
        training: configs/training.
        steps: of the whole run, for the schedule.
        seed: the run's.
        identity: configs of model, backbone, … that are kept in every checkpoint.
        fixed_prompt: in place of the captions (configs/prompt), but for those dropped; None for the captions.
        average_on: ``device``, or ``cpu`` for the averaged weights in the host's memory.
    """

    strict_loading = False  # checkpoints hold the trainable weights alone; see on_load_checkpoint

    def __init__(
        self,
        network: Network,
        autoencoder: Autoencoder,
        text_encoder: TextEncoder,
        training: Mapping[str, Any],
        *,
        steps: int,
        seed: int,
        identity: dict[str, Any],
        fixed_prompt: str | None = None,
        average_on: str = "device",
    ) -> None:
        super().__init__()
        if training["loss"] not in LOSSES:
            raise UserError(f"training.loss={training['loss']!r}: choose one of {', '.join(LOSSES)}")
        learning_rate_factor(0, steps=steps, warmup=0, schedule=training["schedule"])
        self.network = network
        # Frozen helpers are kept out of the module's state and of its trainable parameters.
        self._frozen = {"autoencoder": autoencoder}
        self.text_encoder = text_encoder
        self.training_config = dict(training)
        self.steps = steps
        self.seed = seed
        self.identity = identity
        self.fixed_prompt = fixed_prompt
        self.average_on = average_on
        self._micro_losses: list[Tensor] = []
        self.step_loss: Tensor | None = None  # of a step that has just ended, until it is logged; this process's
        self._kernels = ExitStack()
        self.ema = ExponentialMovingAverage(network, training["ema_decay"])
        if training["gradient_checkpointing"]:
            network.enable_gradient_checkpointing()
        compile_network(network, training.get("compile", False))

    @property
    def autoencoder(self) -> Autoencoder:
        """The frozen autoencoder."""
        return self._frozen["autoencoder"]

    def prepare_data(self) -> None:
        """Embed the run's prompts before it begins, where embeddings are kept on disk; on one rank of a machine."""
        precompute_prompts(self)

    def configure_model(self) -> None:
        """Shard the network where the strategy does so; the average is then sharded with it."""
        strategy = self.trainer.strategy
        if isinstance(strategy, Sharded):
            self.ema.average.clear()  # whole; it starts as the weights do
            precision = str(self.trainer.precision)
            shard_network(self.network, strategy.mesh, precision=precision, frozen=strategy.frozen)
            self.ema = ExponentialMovingAverage(self.network, self.ema.decay)

    def on_fit_start(self) -> None:
        # Until the fit ends: checkpointed blocks are run again in the backward pass, and must find the same kernel.
        self._kernels.enter_context(attention_kernel("auto", self.device))
        self.ema.to("cpu" if self.average_on == "cpu" else self.device)
        for frozen in (self.autoencoder, self.text_encoder):
            if hasattr(frozen, "to"):
                frozen.to(self.device)

    def teardown(self, stage: str) -> None:
        self._kernels.close()

    def draw_sigma(self, indices: list[int]) -> Tensor:
        """σ of the samples with these numbers: logit-normal, then shifted (arXiv 2403.03206, section 3.1). (B,)."""
        config = self.training_config
        u = flow.logit_normal(
            normal(self.seed, indices, "sigma", (1,))[:, 0], config["sigma_mean"], config["sigma_std"]
        )
        return flow.shift_sigma(u, config["shift"])

    def loss(self, batch: Mapping[str, Any]) -> Tensor:
        """The training loss of a batch (see :mod:`dit4sr.data.datamodule`), a scalar."""
        indices = batch["index"].tolist()
        scale, channels = self.autoencoder.scale, self.autoencoder.channels
        stored = stored_latents(batch, channels)
        H, W = batch["hq"].shape[-2:] if stored is None else (side * scale for side in stored[0].shape[-2:])
        latent_shape = (channels, H // scale, W // scale)
        posterior = None
        if stored is None and getattr(self.autoencoder, "has_posterior", False):
            draws = normal(self.seed, indices, "posterior", (2, *latent_shape))
            posterior = to_device(draws, self.device).transpose(0, 1)
        # Latents in float32: rounding them to bfloat16 would be an error of the data, not of the network.
        with torch.no_grad(), torch.autocast(self.device.type, enabled=False):
            pair = stored or encode_pair(self.autoencoder, batch["hq"], batch["lq"], posterior)
            z, lr_latent = (latent.float() for latent in pair)
            embedded = batch.get("embedding") if self.fixed_prompt is None else None
            text = embed_prompts(self.text_encoder, self.prompts(batch), embedded)
            tokens, pooled = (to_device(part, self.device, torch.float32) for part in (text.tokens, text.pooled))
        eps = to_device(normal(self.seed, indices, "noise", latent_shape), self.device)
        sigma = to_device(self.draw_sigma(indices), self.device)
        velocity = self.network(
            flow.interpolate(z, eps, sigma),
            lr_latent,
            sigma * TRAIN_TIMESTEPS,
            tokens,
            pooled,
            return_dict=False,
        )
        if self.training_config["loss"] == "latent":
            return flow.latent_loss(velocity, z, eps, sigma)
        return flow.velocity_loss(velocity, z, eps)

    def prompts(self, batch: Mapping[str, Any]) -> list[str]:
        """The B prompts to train on: the captions, or the fixed prompt where it is not dropped."""
        if self.fixed_prompt is None:
            return batch["prompt"]
        return ["" if dropped else self.fixed_prompt for dropped in batch["dropped"].tolist()]

    def training_step(self, batch: Mapping[str, Any], batch_idx: int) -> Tensor:
        loss = self.loss(batch)
        # Lightning logs under the metric "step" where there is one: here the steps completed with this one. A tensor of
        # the host: Lightning would copy a plain number to the device and wait for it.
        self.log("step", torch.tensor(float(self.global_step + 1)))
        self._micro_losses.append(loss.detach())
        if (
            len(self._micro_losses) >= self.trainer.accumulate_grad_batches
        ):  # of the whole batch, as without accumulation
            self.step_loss = torch.stack(self._micro_losses).mean()
            self._micro_losses = []
        return loss

    def on_train_batch_end(self, outputs: Any, batch: Mapping[str, Any], batch_idx: int) -> None:
        # The mean over the ranks is a barrier for them all: it is asked for at those steps alone that Lightning logs.
        trainer = self.trainer
        if self.step_loss is not None:
            if trainer.global_step % trainer.log_every_n_steps == 0 or trainer.should_stop:  # type: ignore[attr-defined]
                self.log("train/loss", self.step_loss, sync_dist=True, batch_size=len(batch["prompt"]))
            self.step_loss = None

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        if (self.global_step + 1) % self.trainer.log_every_n_steps == 0:  # type: ignore[attr-defined]
            for group, norm in gradient_norms(self.network).items():
                self.log(f"gradient/{group}", norm)
            self.log("train/learning_rate", torch.tensor(optimizer.param_groups[0]["lr"]))

    def configure_gradient_clipping(
        self,
        optimizer: torch.optim.Optimizer,
        gradient_clip_val: int | float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        # Lightning refuses to clip for a fused optimiser in any mixed precision, since with scaled gradients it would
        # clip what is not unscaled yet. Here a fused one never has scaled gradients (build_optimizer).
        if skips_on_device(optimizer) and gradient_clip_val and gradient_clip_algorithm in (None, "norm"):
            parameters = [p for group in optimizer.param_groups for p in group["params"]]
            torch.nn.utils.clip_grad_norm_(parameters, gradient_clip_val)
        else:
            super().configure_gradient_clipping(optimizer, gradient_clip_val, gradient_clip_algorithm)

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        super().optimizer_step(*args, **kwargs)
        self.ema.update(self.network, self.global_step)

    def configure_optimizers(self) -> Any:
        config = self.training_config
        optimizer = build_optimizer(self.network, config, scaled=str(self.trainer.precision).startswith("16"))
        scheduler = torch.optim.lr_scheduler.LambdaLR(
            optimizer,
            lambda step: learning_rate_factor(
                step, steps=self.steps, warmup=config["warmup_steps"], schedule=config["schedule"]
            ),
        )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        trainable = {f"network.{n}" for n, p in self.network.named_parameters() if p.requires_grad}
        checkpoint["state_dict"] = {n: v for n, v in checkpoint["state_dict"].items() if n in trainable}
        checkpoint["ema"] = self.ema.state_dict()
        checkpoint["dit4sr"] = self.identity

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        trainable = {f"network.{n}" for n, p in self.network.named_parameters() if p.requires_grad}
        if wrong := sorted(trainable ^ set(checkpoint["state_dict"])):
            raise ValueError(f"the checkpoint does not fit the network: {', '.join(wrong[:5])} …")
        self.ema.load_state_dict(checkpoint["ema"])


GRADIENT_GROUPS = {
    "to_q_control": "to_q_control",
    "to_k_control": "to_k_control",
    "to_v_control": "to_v_control",
    "to_out_control": "to_out_control",
    ".ff.control_": "injection",
    "controlnet.": "controlnet",
}
"""Part of a parameter's name → group under which its gradient norm is logged. At a zero start
P_q and P_o have no gradient at all, and P_k's is far above P_v's, so one norm would hide much."""


def gradient_norms(network: torch.nn.Module) -> dict[str, Tensor]:
    """L2 norm of the gradients by group (before clipping); ``base`` is what is in no other."""
    squares: dict[str, list[Tensor]] = {}
    for name, parameter in network.named_parameters():
        if parameter.grad is not None:
            group = next((g for part, g in GRADIENT_GROUPS.items() if part in name), "base")
            squares.setdefault(group, []).append(parameter.grad)
    return {g: whole(torch.nn.utils.get_total_norm(gradients)) for g, gradients in squares.items()}

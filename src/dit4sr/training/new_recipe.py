"""A run that goes on with another learning rate, other betas or another decay."""

from __future__ import annotations

from typing import Any

import lightning
from lightning.pytorch.callbacks import Callback
from torch.optim.lr_scheduler import LambdaLR


class NewRecipe(Callback):
    """Give the optimiser the config's rate, betas and decay in place of those that its restored state brought."""

    def on_train_start(self, trainer: lightning.Trainer, pl_module: Any) -> None:
        training = pl_module.training_config
        rate = training["learning_rate"]
        for optimizer in trainer.optimizers:
            for group in optimizer.param_groups:
                group.update(initial_lr=rate, weight_decay=training["weight_decay"])
                if "betas" in group:
                    group["betas"] = tuple(training["betas"])
        for scheduler in (config.scheduler for config in trainer.lr_scheduler_configs):
            assert isinstance(scheduler, LambdaLR)
            scheduler.base_lrs = [rate] * len(scheduler.base_lrs)
            for group, factor in zip(scheduler.optimizer.param_groups, scheduler.lr_lambdas, strict=True):
                group["lr"] = rate * factor(scheduler.last_epoch)

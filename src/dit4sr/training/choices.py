"""The values that settings of a training may have, by name. Nothing is imported: they are checked before all else."""

from __future__ import annotations

OPTIMIZERS = ("adamw", "adamw8bit", "muon")
"""Values of ``training.optimizer``."""

LOSSES = ("latent", "velocity")
"""Values of ``training.loss``."""

SCHEDULES = ("constant", "cosine")
"""Values of ``training.schedule``, of the learning rate."""

COMPILED = ("blocks", "network")
"""Values of ``training.compile`` beside false. ``blocks``: each kind of transformer block is compiled once and used for
all of its kind; ``network``: everything between inputs and velocity in one graph, which takes longer."""

ACCELERATORS = ("auto", "cpu", "gpu", "cuda", "mps")
"""Values of ``trainer.accelerator``."""

STRATEGIES = ("auto", "ddp", "fsdp")
"""Values of ``trainer.strategy``."""

PRECISIONS = ("32-true", "bf16-mixed", "16-mixed", "bf16-true", "16-true", "64-true")
"""Values of ``trainer.precision``."""

FROZEN = ("sharded", "whole")
"""Values of ``trainer.frozen``: what becomes of the weights that do not train."""

PROFILERS = ("simple", "advanced", "pytorch")
"""Values of ``debugging.profiler`` beside null."""

WANDB_MODES = ("auto", "online", "offline", "disabled")
"""Values of ``logger.wandb.mode``."""

"""Stopping when the scheduler says so: save at the end of the step, then stop; before the first step, stop at once."""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Callable
from typing import Any

import lightning
from lightning.pytorch.callbacks import Callback

from dit4sr.helper_processes import SIGNALS
from dit4sr.training.requeue import leave


class StopOnSignal(Callback):
    """On SIGTERM or SIGUSR1 finish the step, save, and stop.

    Ranks must stop after the same step, so with several of them they agree on it every ``every`` steps: asking at
    each step would cost a synchronisation. For the same reason one of several leaves at once only before its first
    backward pass: until then no other one can have done a step, since each needs the gradients of all.

    Args:
        save: called with the trainer to save a checkpoint; says whether there is one now.
        every: steps between the ranks' agreements.

    Attributes:
        stopped: whether the run was stopped so.
    """

    def __init__(self, save: Callable[[lightning.Trainer], bool], every: int = 10) -> None:
        self.save, self.every = save, every
        self.received: int | None = None
        self.stopped = False
        self._step = 0
        self._trainer: lightning.Trainer | None = None
        self._began_at = 0
        self._bound = False
        self._before: dict[int, Any] = {}

    def on_train_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        self._step = self._began_at = trainer.global_step
        self._trainer, self._bound = trainer, False
        # Not earlier: Lightning sets a handler of SIGTERM of its own, which ends the run without saving.
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._receive) for number in SIGNALS}

    def _receive(self, number: int, frame: Any) -> None:
        if self._trainer is not None and self._trainer.global_step == self._began_at and not self._bound:
            leave(number, frame)
        self.received = number

    def on_before_backward(self, trainer: lightning.Trainer, *args: Any) -> None:
        self._bound = trainer.world_size > 1

    def on_train_batch_end(self, trainer: lightning.Trainer, *args: Any) -> None:
        if trainer.global_step == self._step:  # in the middle of an accumulation
            return
        self._step = trainer.global_step
        if self.stopped or not self._agreed(trainer):
            return
        self.stopped = True
        saved = self.save(trainer)
        trainer.should_stop = True
        if trainer.is_global_zero:
            name, step = signal.Signals(self.received or signal.SIGTERM).name, trainer.global_step
            what = (
                f"saved step {step}; the same command goes on from there"
                if saved
                else f"left after step {step}; this run saves nothing, so the same command begins again"
            )
            print(f"told to stop ({name}): {what}", file=sys.stderr)

    def _agreed(self, trainer: lightning.Trainer) -> bool:
        mine = self.received is not None
        if trainer.world_size == 1:
            return mine
        if trainer.global_step % self.every:
            return False
        return bool(trainer.strategy.reduce_boolean_decision(mine, all=False))

    def on_train_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        self._restore()

    def on_exception(self, trainer: lightning.Trainer, *args: Any) -> None:
        self._restore()

    def _restore(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}

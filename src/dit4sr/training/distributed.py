"""Training with several processes: who starts them, and what happens when one of them ends.

The processes of one machine are started by the first (trainer.devices=N), or by torchrun or SLURM. A process that
waits for a dead one would wait for ever, so each watches the others it can see.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from hydra.core.hydra_config import HydraConfig
from lightning.pytorch.strategies import DDPStrategy, ParallelStrategy, Strategy
from lightning.pytorch.strategies.launchers.subprocess_script import _SubprocessScriptLauncher

from dit4sr.errors import REQUEUE, Preempted, RankLost, UserError
from dit4sr.training.choices import STRATEGIES
from dit4sr.training.memory import advice
from dit4sr.training.requeue import LAUNCHER, LEFT, end_with, say_nothing_is_lost

RUN_FOLDER = "DIT4SR_RUN_FOLDER"
"""Tells the other processes the folder, whose default name has the time in it."""


def started_by_a_launcher() -> bool:
    """Whether torchrun or srun has started this process among several."""
    if os.environ.get(LAUNCHER):
        return False
    return int(os.environ.get("WORLD_SIZE", 1)) > 1 or int(os.environ.get("SLURM_NTASKS", 1)) > 1


def count_devices(accelerator: str, devices: Any) -> int:
    """Processes a machine that ``trainer.devices`` stands for."""
    if isinstance(devices, str) and devices.lstrip("-").isdecimal():
        devices = int(devices)
    if devices == "auto" or devices == -1:
        return max(1, torch.cuda.device_count()) if accelerator in ("auto", "gpu", "cuda") else 1
    if isinstance(devices, str):
        devices = [part for part in devices.split(",") if part.strip()]
    return devices if isinstance(devices, int) else len(devices)


def build_strategy(config: Mapping[str, Any], out: Path) -> str | Strategy:
    """Lightning's strategy for ``trainer.strategy``; ``auto`` is a single process for one device and ddp for more.

    Args:
        config: configs/train.yaml, composed.
        out: the run's folder.

    Raises:
        UserError: for another strategy, or one that cannot do what the config asks for.
    """
    trainer = config["trainer"]
    name = trainer["strategy"]
    several = count_devices(trainer["accelerator"], trainer["devices"]) * trainer["num_nodes"] > 1
    several = several or started_by_a_launcher() or LAUNCHER in os.environ
    if name not in STRATEGIES:
        raise UserError(f"trainer.strategy={name}: choose one of {', '.join(STRATEGIES)}")
    if name == "auto" and not several:
        return "auto"
    timeout = timedelta(minutes=trainer.get("timeout_minutes", 10))
    if name == "fsdp":
        from dit4sr.training.sharding import Sharded, check_sharded

        check_sharded(config)
        return Sharded(out, timeout=timeout, frozen=trainer.get("frozen", "sharded"))
    return Replicas(out, timeout=timeout)


class StartedHere(ParallelStrategy):
    """A strategy whose processes, where no launcher has started them, the first one starts.

    Attributes:
        out: the run's folder.
    """

    out: Path
    num_nodes: int
    num_processes: Any

    def _configure_launcher(self) -> None:
        if self.cluster_environment is not None and not self.cluster_environment.creates_processes_externally:
            self._launcher = RankLauncher(self.cluster_environment, self.num_processes, self.num_nodes)
            self._launcher.out = self.out


class Replicas(StartedHere, DDPStrategy):
    """DDP whose processes end together, with a line that says which was the first.

    Args:
        out: the run's folder.
        timeout: of a collective operation.
    """

    def __init__(self, out: Path, timeout: timedelta) -> None:
        super().__init__(timeout=timeout, gradient_as_bucket_view=True)
        self.out = out


class RankLauncher(_SubprocessScriptLauncher):
    """Starts the other processes of this machine by the command that started this one, and tells them the folder.

    Lightning's own leaves them a default folder with another time in its name, and says nothing when one dies.
    """

    out: Path

    def launch(self, function: Any, *args: Any, trainer: Any = None, **kwargs: Any) -> Any:
        """Start them, then call ``function``."""
        self.cluster_environment.validate_settings(num_devices=self.num_processes, num_nodes=self.num_nodes)
        self._call_children_scripts()
        try:
            return function(*args, **kwargs)
        finally:
            for name in ("MASTER_ADDR", "MASTER_PORT", "NODE_RANK", "LOCAL_RANK", "WORLD_SIZE"):
                os.environ.pop(name, None)  # what this process does next, it does alone

    def _call_children_scripts(self) -> None:
        if self.num_processes > 1 and not (HydraConfig.initialized() or Path(sys.argv[0]).stem == "sweep_job"):
            raise UserError("several processes are started by the verb train alone: set trainer.devices=1")
        environment = self.cluster_environment
        os.environ.update(
            MASTER_ADDR=environment.main_address,
            MASTER_PORT=str(environment.main_port),
            NODE_RANK=str(environment.node_rank()),
            LOCAL_RANK=str(environment.local_rank()),
            WORLD_SIZE=str(self.num_processes * self.num_nodes),
        )
        told = {RUN_FOLDER: str(self.out), LAUNCHER: str(os.getpid())}
        for rank in range(1, self.num_processes):
            command = [sys.executable, *sys.orig_argv[1:]]
            self.procs.append(subprocess.Popen(command, env={**os.environ, **told, "LOCAL_RANK": str(rank)}))
        threading.Thread(target=watch_children, args=(self.procs,), daemon=True, name="ranks").start()


def watch_children(processes: list[subprocess.Popen[bytes]], grace: float = 5.0) -> None:
    """End the run with a message when a process of it has died, or has left because it was told to stop.

    Run in a thread of the first process.

    Args:
        processes: the others.
        grace: seconds for this process to end by itself, where all meet the same error.
    """
    while True:
        time.sleep(0.5)
        codes = [process.poll() for process in processes]
        if all(code in (0, REQUEUE) for code in codes):
            return
        left, dead = LEFT in codes, first_dead(processes)
        if left or dead:
            time.sleep(grace)
            left = left or LEFT in [process.poll() for process in processes]
            for process in processes:
                process.kill()
            # This thread is not the one that hangs in a collective operation.
            if left:
                say_nothing_is_lost("a process of the run was")
                end_with(REQUEUE)
            print(f"error: {dead}", file=sys.stderr, flush=True)
            os._exit(1)


def first_dead(processes: list[subprocess.Popen[bytes]]) -> str | None:
    """What to say of the first of these processes that has ended badly; None where none has."""
    for rank, process in enumerate(processes, start=1):
        code = process.poll()
        if code is not None and code not in (0, REQUEUE, LEFT):
            how = f"by {signal.Signals(-code).name}" if code < 0 else f"with status {code}"
            return (
                f"process {process.pid} (rank {rank} of this machine) ended {how}: the run is stopped; the same "
                "command goes on from its last checkpoint"
            )
    return None


@contextmanager
def explained(trainer: Any) -> Iterator[None]:
    """Within the block, the end of a process that this one depends on becomes a line that says so.

    Args:
        trainer: Lightning's.

    Raises:
        UserError: the device's memory is too small.
        RankLost: another process has ended or is out of reach.
        Preempted: the same, and this one or that one was told to stop: others of the run were sooner.
    """
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise UserError(advice()) from error
    except RuntimeError as error:
        if not isinstance(error, torch.distributed.DistError) and not any(n in str(error) for n in ("gloo", "NCCL")):
            raise
        processes = getattr(getattr(trainer.strategy, "launcher", None), "procs", [])
        if processes:
            time.sleep(0.5)  # a process that has closed its connections ends a little later
        left = LEFT in [process.poll() for process in processes]
        dead = first_dead(processes)
        for process in processes:
            process.kill()
        if left or any(getattr(callback, "received", None) is not None for callback in trainer.callbacks):
            if LAUNCHER not in os.environ:
                print(
                    "told to stop, and another process of the run has ended already: the same command goes on from the "
                    "last checkpoint, if there is one",
                    file=sys.stderr,
                )
            raise Preempted from error
        raise RankLost(
            dead
            or f"another process of the run has ended or is out of reach ({str(error).splitlines()[0][:200]}): "
            "the run is stopped; the same command goes on from its last checkpoint"
        ) from error


def leave_group() -> None:
    """Part from the other processes at the end of a training: a group that is left to the interpreter's end has threads
    that may still run when they are destroyed, which aborts the process after all its work is done."""
    import torch.distributed as dist

    if dist.is_available() and dist.is_initialized():
        dist.destroy_process_group()


def watch_parent() -> None:
    """In a process that another has started: end when that one has died."""
    parent = os.environ.get(LAUNCHER)
    if parent is not None:
        threading.Thread(target=_watch_parent, args=(int(parent),), daemon=True, name="launcher").start()


def _watch_parent(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(0.5)
    print(
        f"error: rank {os.environ.get('LOCAL_RANK')} ends because process {parent}, which had started it, has ended: "
        "the same command goes on from its last checkpoint",
        file=sys.stderr,
        flush=True,
    )
    os._exit(1)

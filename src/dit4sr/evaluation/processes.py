"""One evaluation by several processes: started by torchrun, or by ``processes=``."""

from __future__ import annotations

import multiprocessing
import multiprocessing.connection
import os
import tempfile
import threading
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

from dit4sr.errors import UserError

PATIENCE = timedelta(days=7)
"""How long processes wait for each other: one may have many more images left to restore."""


@dataclass(frozen=True)
class Group:
    """The processes of an evaluation, seen from one of them.

    Attributes:
        rank: of this process, from 0.
        size: number of processes.
        local: number of this process on its machine, which chooses its GPU.
    """

    rank: int = 0
    size: int = 1
    local: int = 0

    @property
    def first(self) -> bool:
        """Whether this process writes what all share, and talks."""
        return self.rank == 0

    def gather(self, value: Any) -> list[Any]:
        """Every process's value, in all processes; also a point where they wait for each other."""
        if self.size == 1:
            return [value]
        import torch.distributed as dist

        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value)
        return values

    def first_does(self, work: Callable[[], Any]) -> Any:
        """Let the first process do something while the others wait; all get its result, or its UserError."""
        result: Any = None
        if self.first:
            try:
                result = (True, work())
            except UserError as error:
                result = (False, str(error))
        done, value = self.gather(result)[0]
        if not done:
            raise UserError(value)
        return value

    def device(self, name: str) -> str:
        """``auto`` spreads processes over the GPUs of their machine."""
        if self.size == 1 or name not in ("auto", "cuda"):
            return name
        import torch

        count = torch.cuda.device_count()
        return f"cuda:{self.local % count}" if count else name


def torchrun_group() -> Group | None:
    """The group that torchrun started, joined; None without it.

    The processes talk through gloo on CPU tensors: only values and words are exchanged.
    """
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size < 2 or "RANK" not in os.environ:
        return None
    import torch.distributed as dist

    if not dist.is_initialized():
        dist.init_process_group("gloo", timeout=PATIENCE)
    return Group(int(os.environ["RANK"]), size, int(os.environ.get("LOCAL_RANK", "0")))


def leave() -> None:
    """Leave torchrun's group."""
    import torch.distributed as dist

    if dist.is_initialized():
        dist.destroy_process_group()


def peak_memory(device: str) -> int:
    """Bytes: a GPU's allocations at their peak, or this process's memory at its peak."""
    if device.startswith("cuda"):
        import torch

        return torch.cuda.max_memory_allocated(device)
    import resource
    import sys

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def spawn(size: int, work: Callable[..., int], *arguments: Any) -> int:
    """Run ``work(group, *arguments)`` in that many processes on this machine; the first one's result.

    All end when one fails, or when this process ends, however it ends.

    Args:
        size: number of processes.
        work: a function of a module; its arguments must be picklable.

    Raises:
        UserError: the first one that a process raised, or where a process was killed.
    """
    import torch

    context = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory(prefix="dit4sr-evaluate-") as folder:
        reports = [context.Pipe(duplex=False) for _ in range(size)]
        processes = [
            context.Process(
                target=_run,
                args=(Group(rank, size, rank), f"file://{Path(folder) / 'meet'}", reports[rank][1], work, arguments),
                # Each computes with as many threads as one process would, so that sums are the same.
                kwargs={"threads": torch.get_num_threads()},
            )
            for rank in range(size)
        ]
        for process in processes:
            process.start()
        for _, sender in reports:
            sender.close()
        try:
            return _wait(processes, [receiver for receiver, _ in reports])
        finally:
            for process in processes:
                process.terminate()
            for process in processes:
                process.join()


def _wait(processes: list[Any], receivers: list[Any]) -> int:
    results: dict[int, int] = {}
    left: dict[Any, int] = {receiver: rank for rank, receiver in enumerate(receivers)}
    while left:
        ready: Any
        for ready in multiprocessing.connection.wait(list(left)):
            rank = left.pop(ready)
            try:
                kind, value = ready.recv()
            except EOFError:
                processes[rank].join()
                raise UserError(
                    f"process {rank} of the evaluation ended before its time (exit status {processes[rank].exitcode}); "
                    "what is finished is kept: run the same command to continue"
                ) from None
            if kind == "user error":
                raise UserError(value)
            if kind == "error":
                raise RuntimeError(f"process {rank} of the evaluation failed:\n{value}")
            results[rank] = value
    for process in processes:
        process.join()
    return results[0]


def _run(
    group: Group, meeting: str, sender: Any, work: Callable[..., int], arguments: tuple[Any, ...], threads: int
) -> None:
    threading.Thread(target=_end_with_parent, daemon=True).start()
    import torch
    import torch.distributed as dist

    torch.set_num_threads(threads)
    try:
        dist.init_process_group("gloo", init_method=meeting, rank=group.rank, world_size=group.size, timeout=PATIENCE)
        sender.send(("done", work(group, *arguments)))
    except UserError as error:
        sender.send(("user error", str(error)))
    except KeyboardInterrupt:
        os._exit(130)
    except BaseException:
        import traceback

        sender.send(("error", traceback.format_exc()))
    finally:
        sender.close()
        if dist.is_initialized():
            dist.destroy_process_group()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        multiprocessing.connection.wait([parent.sentinel])
        os._exit(1)

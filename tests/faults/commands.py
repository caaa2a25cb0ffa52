"""Training by the real command, in processes that can be signalled."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from faults.harness import rows
from tiny_checkpoint import TINY

ROOT = Path(__file__).resolve().parents[2]
FAST = (
    *TINY, "backbone.crop=32", "backbone.tile.size=8", "backbone.tile.overlap=2", "training.batch_size=4",
    "training.warmup_steps=2", "training.schedule=constant", "data.workers=0", "trainer.log_every_n_steps=1",
    "callbacks=none", "callbacks.progress=false", "logger=csv",
)  # fmt: skip
ONE = ("trainer=cpu",)
TWO = ("trainer=ddp", "trainer.accelerator=cpu", "trainer.devices=2")
TORCHRUN = ("-m", "torch.distributed.run", "--nproc-per-node=2", "--master-port=0", "--rdzv-backend=c10d",
            "--rdzv-endpoint=localhost:0")  # fmt: skip


def start(
    data: Path,
    *arguments: str,
    launcher: tuple[str, ...] = (),
    program: tuple[str, ...] = (str(ROOT / "train.py"),),
    **environment: str,
) -> subprocess.Popen[str]:
    """Start ``python [launcher] train.py <arguments>``, or another program, on the tiny network."""
    flags = [argument for argument in arguments if argument.startswith("--")]
    overrides = [argument for argument in arguments if not argument.startswith("--")]
    return subprocess.Popen(
        [sys.executable, *launcher, *program, *flags, *FAST, f"paths.data={data}", *overrides],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1", "WANDB_MODE": "offline", **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def finish(process: subprocess.Popen[str], seconds: float = 600) -> tuple[int, str]:
    """Wait for the end: exit status and all that was printed; what still runs then is killed."""
    try:
        out, error = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        out, error = process.communicate()
        raise AssertionError(f"still running after {seconds} s:\n{out}\n{error}") from None
    return process.returncode, out + error


def run(data: Path, *arguments: str, launcher: tuple[str, ...] = (), **environment: str) -> tuple[int, str]:
    """Start and wait."""
    return finish(start(data, *arguments, launcher=launcher, **environment))


def wait_for_step(process: subprocess.Popen[str], out: Path, step: int, seconds: float = 600) -> None:
    """Until the run has logged ``step``."""
    deadline = time.monotonic() + seconds
    while max(rows(out), default=0) < step:
        if process.poll() is not None or time.monotonic() > deadline:
            raise AssertionError(f"no step {step}: {finish(process, 1)}")
        time.sleep(0.05)


def alive(pid: int) -> bool:
    """Whether a process runs: one that has ended may stay as a zombie until somebody asks for its status."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def family(pid: int) -> list[int]:
    """A process and all that descend from it."""
    return [pid, *(one for child in children(pid) for one in family(child))]


def children(pid: int) -> list[int]:
    """The processes that a process has started."""
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]

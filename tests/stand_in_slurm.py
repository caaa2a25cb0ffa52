"""The commands of SLURM that submitit uses, on one machine: enough of them to see jobs queued, warned and queued again.

``install`` makes a folder with sbatch, srun, sacct, scontrol and scancel, to be put on PATH. As SLURM does, a job that
is queued again is told to end, is killed a while later, and begins anew with the same number.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

KILL_WAIT = 5.0
"""Seconds between SIGTERM and SIGKILL; SLURM's default is 30."""


def install(folder: Path) -> dict[str, str]:
    """Write the commands into a folder; returns the environment in which they are found."""
    folder.mkdir(parents=True)
    for name in ("sbatch", "srun", "sacct", "scontrol", "scancel"):
        command = folder / name
        command.write_text(f'#!/bin/sh\nexec {sys.executable} {Path(__file__).resolve()} {name} {folder} "$@"\n')
        command.chmod(0o755)
    return {**os.environ, "PATH": f"{folder}:{os.environ['PATH']}"}


def sbatch(state: Path, script: str) -> None:
    number = str(100 + len(list(state.glob("*.script"))))
    (state / f"{number}.script").write_text(Path(script).read_text())
    last = re.search(r"^#SBATCH --array=0-(\d+)", Path(script).read_text(), re.MULTILINE)
    for task in range(int(last[1]) + 1) if last else [None]:
        job = number if task is None else f"{number}_{task}"
        (state / f"{job}.state").write_text("PENDING")
        keeper = [sys.executable, str(Path(__file__).resolve()), "keep", str(state), job]
        quiet = subprocess.DEVNULL
        subprocess.Popen(keeper, stdin=quiet, stdout=quiet, stderr=quiet, start_new_session=True)
    print(f"Submitted batch job {number}")


def keep(state: Path, job: str) -> None:
    """Run a job, and again as often as it is queued again."""
    number, _, task = job.partition("_")
    for restarts in range(100):
        env = {**os.environ, "SLURM_JOB_ID": job, "SLURM_NTASKS": "1", "SLURM_JOB_NUM_NODES": "1", "SLURM_NODEID": "0"}
        env |= {"SLURM_PROCID": "0", "SLURM_LOCALID": "0", "SLURM_RESTART_COUNT": str(restarts)}
        env |= {"SLURM_ARRAY_JOB_ID": number, "SLURM_ARRAY_TASK_ID": task} if task else {}
        (state / f"{job}.state").write_text("RUNNING")
        status = subprocess.run(["bash", state / f"{number}.script"], env=env).returncode
        if not (state / f"{job}.again").exists():
            (state / f"{job}.state").write_text("FAILED" if status else "COMPLETED")
            return
        (state / f"{job}.again").unlink()
        with (state / "restarts").open("a") as file:
            file.write(f"{job}\n")


def srun(state: Path, *arguments: str) -> None:
    """Run the command in a group of its own, whose processes are a job step."""
    job = os.environ["SLURM_JOB_ID"]
    number, _, task = job.partition("_")
    rest, files = list(arguments), {}
    while rest[0].startswith("--"):
        if (option := rest.pop(0)) in ("--output", "--error"):
            name = rest.pop(0)
            for sign, value in {"%A": number, "%a": task, "%j": job, "%t": "0"}.items():
                name = name.replace(sign, value)
            files[option] = open(name, "ab")  # noqa: SIM115 - as long as this process
    step = subprocess.Popen(rest, stdout=files["--output"], stderr=files.get("--error"), process_group=0)
    (state / f"{job}.step").write_text(str(step.pid))
    sys.exit(abs(step.wait()))


def sacct(state: Path, *arguments: str) -> None:
    print("JobID|State|NodeList")
    for file in sorted(state.glob("*.state")):
        print(f"{file.stem}|{file.read_text()}|here")


def scancel(state: Path, job: str, option: str = "--signal", name: str = "SIGTERM") -> None:
    with suppress(ProcessLookupError, FileNotFoundError):
        os.killpg(int((state / f"{job}.step").read_text()), getattr(signal, f"SIG{name.removeprefix('SIG')}"))


def scontrol(state: Path, verb: str, job: str) -> None:
    assert verb == "requeue"
    (state / f"{job}.again").touch()
    step = (state / f"{job}.step").read_text()
    ender = [sys.executable, str(Path(__file__).resolve()), "end", str(state), step]
    subprocess.Popen(ender, start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def end(state: Path, step: str) -> None:
    """End a job step, and not that of the job's next run."""
    with suppress(ProcessLookupError):
        time.sleep(1)  # who has asked for it learns that it will be done
        os.killpg(int(step), signal.SIGTERM)
        time.sleep(KILL_WAIT)
        os.killpg(int(step), signal.SIGKILL)


if __name__ == "__main__":
    globals()[sys.argv[1]](Path(sys.argv[2]), *sys.argv[3:])

"""What a long run meets: full and read-only disks, broken and vanishing shards, dead workers, jumping clocks."""

from __future__ import annotations

import multiprocessing
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest
from faults.commands import FAST, ONE, run
from faults.harness import _train, rows, start
from omegaconf import DictConfig
from tiny_checkpoint import compose_verb

from dit4sr.training.checkpoint_files import newest_valid

pytestmark = pytest.mark.faults


def configure(data: Path, *overrides: str) -> DictConfig:
    return compose_verb("train", *FAST, *ONE, f"paths.data={data}", "out=unused", *overrides)


def said(out: Path) -> str:
    return out.with_suffix(".log").read_text()


def wait(process: BaseProcess, out: Path, step: int) -> None:
    deadline = time.monotonic() + 600
    while max(rows(out), default=0) < step:
        assert process.is_alive() and time.monotonic() < deadline, said(out)[-3000:]
        time.sleep(0.02)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 3 MB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=3m", "none", folder], capture_output=True).returncode:
        pytest.skip("mounting a small file system is not permitted here")
    yield folder
    subprocess.run(["umount", "-l", folder], check=True)


def test_a_full_disk_keeps_the_last_good_checkpoint(data: Path, tmp_path: Path, disk: Path) -> None:
    config = configure(data, "trainer.max_steps=40", "callbacks.checkpoint_every=2", "callbacks.keep_last=100")
    process = start(config, disk / "run")
    process.join(600)
    log = (disk / "run.log").read_text()
    assert process.exitcode != 0 and "could not be written" in log and "is whole" in log, log[-3000:]
    newest = newest_valid(disk / "run" / "checkpoints")
    assert newest is not None and not list((disk / "run" / "checkpoints").glob(".*"))
    subprocess.run(["mount", "-o", "remount,size=64m", disk], check=True)
    process = start(config, disk / "run")
    process.join(600)
    assert process.exitcode == 0, (disk / "run.log").read_text()[-3000:]
    process = start(config, tmp_path / "whole")
    process.join(600)
    assert rows(disk / "run") == rows(tmp_path / "whole")


def test_a_read_only_folder_is_refused(data: Path, disk: Path) -> None:
    subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
    status, text = run(data, *ONE, "trainer.max_steps=1", f"out={disk}/run")
    assert status == 2 and "cannot be written to" in text and "Traceback" not in text


@pytest.fixture
def shards(data: Path, tmp_path: Path) -> Path:
    """A copy of the training shards that may be spoiled."""
    return Path(shutil.copytree(data / "embedded" / "train", tmp_path / "shards"))


def test_a_corrupt_shard_costs_its_samples_alone(data: Path, shards: Path, tmp_path: Path) -> None:
    shard = sorted(shards.glob("*.tar"))[0]
    content = bytearray(shard.read_bytes())
    for position in range(len(content) // 4, len(content) // 2, 5000):
        content[position] ^= 0xFF
    shard.write_bytes(content)
    config = configure(
        data, "data=shards", f"data.shards={shards}", "data.workers=0", "trainer.max_steps=30", "data.max_bad_share=0.9"
    )
    process = start(config, tmp_path / "run")
    process.join(600)
    assert process.exitcode == 0, said(tmp_path / "run")[-3000:]
    assert "warning" in said(tmp_path / "run")
    print([line for line in said(tmp_path / "run").splitlines() if "warning" in line][:2])


def test_a_shard_that_vanishes(data: Path, shards: Path, tmp_path: Path) -> None:
    config = configure(
        data, "data=shards", f"data.shards={shards}", "data.workers=0", "trainer.max_steps=400",
        "data.shuffle_buffer=1", "data.lanes=1", "data.max_bad_share=0.9",
    )  # fmt: skip
    process = start(config, tmp_path / "run")
    wait(process, tmp_path / "run", 2)
    for shard in sorted(shards.glob("*.tar"))[1:]:
        shard.unlink()
    process.join(600)
    lines = [line for line in said(tmp_path / "run").splitlines() if "warning" in line or "Error" in line]
    print(process.exitcode, max(rows(tmp_path / "run")), lines[-3:])
    assert process.exitcode is not None, "it hangs"
    if process.exitcode == 0:
        assert max(rows(tmp_path / "run")) == 400 and any("tar" in line for line in lines)
    else:
        assert "UserError" in said(tmp_path / "run") and ".tar" in lines[-1]


def workers_of(session: int) -> list[int]:
    """Processes of a session that were started neither by its leader nor before it: the fork server's."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[3]) == session and int(fields[1]) != session and int(stat.parent.name) != session:
            found.append(int(stat.parent.name))
    return found


def test_a_killed_data_worker_ends_the_run_with_a_message(data: Path, tmp_path: Path) -> None:
    config = configure(data, "data.workers=2", "trainer.max_steps=100000", "callbacks.checkpoint_every=5")
    process = start(config, tmp_path / "run")
    wait(process, tmp_path / "run", 6)
    victims = workers_of(process.pid or 0)
    assert victims
    os.kill(victims[-1], signal.SIGKILL)
    process.join(600)
    assert process.exitcode not in (0, None), "it hangs"
    assert "UserError: a data worker has ended" in said(tmp_path / "run"), said(tmp_path / "run")[-3000:]
    config.trainer.max_steps = 11
    process = start(config, tmp_path / "run")
    process.join(600)
    assert process.exitcode == 0 and "resumed from" in said(tmp_path / "run")


def test_a_clock_that_jumps_changes_nothing(data: Path, tmp_path: Path) -> None:
    config = configure(data, "trainer.max_steps=12", "callbacks.checkpoint_every=4")

    def with_jumps(config: DictConfig, out: Path) -> None:
        real, calls = time.time, [0]

        def jumping() -> float:
            calls[0] += 1
            return real() + (-86400 * 400 if calls[0] % 2 else 86400 * 400)

        time.time = jumping
        _train(config, out)

    for name, target in (("steady", _train), ("jumping", with_jumps)):
        process = multiprocessing.get_context("fork").Process(target=target, args=(config, tmp_path / name))
        process.start()
        process.join(600)
        assert process.exitcode == 0, said(tmp_path / name)
    assert rows(tmp_path / "steady") == rows(tmp_path / "jumping") and len(rows(tmp_path / "steady")) == 12


def test_wandb_out_of_reach_does_not_stop_training(data: Path, tmp_path: Path) -> None:
    began = time.monotonic()
    status, text = run(
        data, *ONE, "logger=default", "trainer.max_steps=3", f"out={tmp_path}/run",
        WANDB_MODE="online", WANDB_BASE_URL="http://127.0.0.1:9", WANDB_API_KEY="0" * 40,
    )  # fmt: skip
    assert status == 0 and "logging offline" in text, text
    assert len(rows(tmp_path / "run")) == 3 and time.monotonic() - began < 120


def test_weights_that_explode_stop_the_run_with_the_batch(data: Path, tmp_path: Path) -> None:
    config = configure(
        data, "trainer.max_steps=50", "training.optimizer=adamw", "training.learning_rate=1e30",
        "training.warmup_steps=0",
    )  # fmt: skip
    process = start(config, tmp_path / "run")
    process.join(600)
    assert process.exitcode != 0 and "in a row were not finite" in said(tmp_path / "run"), said(tmp_path / "run")
    assert list((tmp_path / "run" / "faults").glob("batch-step*.safetensors"))


def test_a_second_run_on_a_folder_is_refused_and_the_first_goes_on(data: Path, tmp_path: Path) -> None:
    config = configure(data, "trainer.max_steps=100000")
    first = start(config, tmp_path / "run")
    wait(first, tmp_path / "run", 2)
    status, text = run(data, *ONE, "trainer.max_steps=5", f"out={tmp_path}/run")
    assert status == 2 and "another run is training into" in text and str(first.pid) in text
    reached = max(rows(tmp_path / "run"))
    wait(first, tmp_path / "run", reached + 2)
    os.killpg(first.pid or 0, signal.SIGKILL)
    first.join()

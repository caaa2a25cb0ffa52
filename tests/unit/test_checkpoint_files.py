"""Checkpoint files: whole or not there, and damage is found."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from dit4sr.errors import UserError
from dit4sr.training.checkpoint_files import damage, newest_valid, remove_partial, step_file, step_files
from dit4sr.training.checkpoint_io import AtomicCheckpointIO, write_checkpoint


def state(step: int) -> dict[str, object]:
    return {"global_step": step, "weights": torch.full((1000,), float(step))}


def write(folder: Path, step: int, keep: int = 2) -> Path:
    path = step_file(folder, step)
    write_checkpoint(state(step), path, alias=folder / "last.ckpt", keep=keep)
    return path


def test_last_is_the_newest_and_old_ones_go(tmp_path: Path) -> None:
    for step in (1, 2, 10):
        write(tmp_path, step)
    assert [p.name for p in step_files(tmp_path)] == ["step-000000010.ckpt", "step-000000002.ckpt"]
    assert torch.load(tmp_path / "last.ckpt", weights_only=True)["global_step"] == 10
    assert newest_valid(tmp_path) == step_file(tmp_path, 10)
    assert not [p for p in tmp_path.iterdir() if p.name.startswith(".")]


def test_any_flipped_byte_of_the_weights_is_found(tmp_path: Path) -> None:
    path = write(tmp_path, 1)
    content = path.read_bytes()
    start = content.index(torch.full((4,), 1.0).numpy().tobytes())
    for offset in (start, start + 1777, start + 3999):
        flipped = bytearray(content)
        flipped[offset] ^= 0x10
        path.write_bytes(flipped)
        assert damage(path) is not None
    path.write_bytes(content)
    assert damage(path) is None


@pytest.mark.parametrize("how", ["truncated", "flipped", "empty"])
def test_the_one_before_a_damaged_checkpoint_serves(how: str, tmp_path: Path) -> None:
    write(tmp_path, 1)
    newest = write(tmp_path, 2)
    content = newest.read_bytes()
    middle = len(content) // 2
    damaged = {
        "truncated": content[:-100],
        "flipped": content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :],
        "empty": b"",
    }[how]
    with newest.open("r+b") as file:  # in place: last.ckpt is the same file
        file.truncate(0)
        file.write(damaged)
    warnings: list[str] = []
    assert newest_valid(tmp_path, warnings.append) == step_file(tmp_path, 1)
    assert len(warnings) == 1 and newest.name in warnings[0]


def test_a_last_checkpoint_without_step_files_is_found(tmp_path: Path) -> None:
    """As runs wrote it that kept no step files."""
    torch.save(state(3), tmp_path / "last.ckpt")
    assert newest_valid(tmp_path) == tmp_path / "last.ckpt"
    (tmp_path / "last.ckpt").write_bytes(b"nothing")
    assert newest_valid(tmp_path, lambda line: None) is None


def test_a_failed_write_keeps_what_was_there(tmp_path: Path) -> None:
    """The size limit of a file acts like a full disk: the write of the second checkpoint fails half-way."""
    write(tmp_path, 1)
    script = (
        "import resource, signal, sys; from pathlib import Path; import torch\n"
        "from dit4sr.errors import UserError\n"
        "from dit4sr.training.checkpoint_io import write_checkpoint\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))\n"
        "folder = Path(sys.argv[1])\n"
        "try:\n"
        "    write_checkpoint({'w': torch.zeros(10000)}, folder / 'step-000000002.ckpt', alias=folder / 'last.ckpt')\n"
        "except UserError as error:\n"
        "    print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", script, str(tmp_path)], capture_output=True, text=True, check=False)
    assert "step-000000002.ckpt could not be written" in done.stdout, done.stderr
    assert "step-000000001.ckpt, is whole" in done.stdout and "disk space" in done.stdout
    assert sorted(p.name for p in tmp_path.iterdir()) == ["last.ckpt", "step-000000001.ckpt"]
    assert torch.load(tmp_path / "last.ckpt", weights_only=True)["global_step"] == 1


def test_a_background_write_is_a_snapshot_and_its_error_is_not_lost(tmp_path: Path) -> None:
    io = AtomicCheckpointIO(background=True)
    weights = torch.zeros(100)
    io.save_checkpoint({"w": weights}, tmp_path / "a.ckpt")
    weights.add_(1)
    io.wait()
    assert float(io.load_checkpoint(tmp_path / "a.ckpt")["w"].sum()) == 0
    (tmp_path / "file").touch()
    io.save_checkpoint({"w": weights}, tmp_path / "file" / "b.ckpt")
    with pytest.raises(UserError, match=r"b\.ckpt could not be written"):
        io.teardown()


def test_what_a_killed_writer_left_is_removed(tmp_path: Path) -> None:
    write(tmp_path, 1)
    (tmp_path / ".step-000000002.0123456789ab.ckpt").write_bytes(b"half")
    (tmp_path / "notes.txt").touch()
    remove_partial(tmp_path)
    assert sorted(os.listdir(tmp_path)) == ["last.ckpt", "notes.txt", "step-000000001.ckpt"]

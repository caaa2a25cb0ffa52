"""A checkpoint of several processes: whole or found damaged, read by any number of them, nothing in it executed."""

from __future__ import annotations

import json
import multiprocessing
import os
import pickle
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_checkpoint import write_checkpoint, write_sharded

from dit4sr.errors import UserError
from dit4sr.models.checkpoint import load_trained, read_checkpoint
from dit4sr.sharded_files import (
    INDEX,
    PLAIN,
    damage,
    digest_of,
    open_sharded,
    read_sharded,
    rows_of,
    shard_file,
)
from dit4sr.training.checkpoint_files import newest_valid, publish, remove, remove_partial, step_file, step_files
from dit4sr.training.checkpoint_io import write_checkpoint as save_checkpoint


def content() -> dict[str, Any]:
    torch.manual_seed(0)
    return {
        "global_step": 7,
        "state_dict": {
            "network.a/b": torch.randn(5, 3),
            "network.c": torch.randn(1),
            "half": torch.randn(8, 2).bfloat16(),
        },
        "optimizer_states": [
            {"state": {0: {"step": torch.tensor(7.0), "exp_avg": torch.randn(5, 3)}}, "param_groups": [{"params": [0]}]}
        ],
        "ema": {"a": torch.randn(2, 3)},
        "dit4sr": {"model": {"name": "dit4sr"}, "betas": (0.9, 0.99), "none": None},
    }


def equal(one: Any, two: Any) -> bool:
    if isinstance(one, torch.Tensor):
        return one.dtype == two.dtype and torch.equal(one, two)
    if isinstance(one, dict):
        return one.keys() == two.keys() and all(equal(one[key], two[key]) for key in one)
    if isinstance(one, list | tuple):
        return type(one) is type(two) and len(one) == len(two) and all(map(equal, one, two))
    return bool(one == two)


@pytest.mark.parametrize("ranks", [1, 2, 3, 8])
def test_what_any_number_of_processes_wrote_is_read_whole_and_in_rows(ranks: int, tmp_path: Path) -> None:
    folder = write_sharded(tmp_path / "step.ckpt", content(), ranks)
    assert damage(folder) is None and equal(read_sharded(folder), content())
    files, name = open_sharded(folder), "state_dict/network.a/b"
    for readers in (1, 2, 4, 7):
        parts = [files.rows(name, *rows_of(rank, readers, 5)) for rank in range(readers)]
        assert torch.equal(torch.cat(parts), content()["state_dict"]["network.a/b"])


def test_parts_that_are_not_wanted_are_not_read(tmp_path: Path) -> None:
    folder = write_sharded(tmp_path / "step.ckpt", content(), 2)
    read = read_sharded(folder, ("ema",))
    assert torch.equal(read["ema"]["a"], content()["ema"]["a"])
    assert read["state_dict"] is None and read["global_step"] == 7


@pytest.mark.parametrize("file", [shard_file(0, 2), shard_file(1, 2), PLAIN, INDEX])
@pytest.mark.parametrize("how", ["flipped", "truncated", "missing"])
def test_damage_is_found_in_every_file(file: str, how: str, tmp_path: Path) -> None:
    folder = write_sharded(tmp_path / "step-000000002.ckpt", content(), 2)
    write_sharded(tmp_path / "step-000000001.ckpt", content(), 3)
    path = folder / file
    whole = path.read_bytes()
    for position in (0, len(whole) // 2, len(whole) - 1):
        flipped = bytearray(whole)
        flipped[position] ^= 1
        if how == "missing":
            path.unlink(missing_ok=True)
        else:
            path.write_bytes(bytes(flipped) if how == "flipped" else whole[:position])
        assert damage(folder) is not None
    warnings: list[str] = []
    assert newest_valid(tmp_path, warnings.append) == tmp_path / "step-000000001.ckpt"
    assert len(warnings) == 1 and folder.name in warnings[0]


def test_names_appear_whole_and_old_ones_go(tmp_path: Path) -> None:
    for step in (1, 2, 3):
        partial = write_sharded(tmp_path / f".step-{step:09d}.0123456789ab.ckpt", content(), 2)
        publish(partial, step_file(tmp_path, step), alias=tmp_path / "last.ckpt", keep=2)
    assert [path.name for path in step_files(tmp_path)] == ["step-000000003.ckpt", "step-000000002.ckpt"]
    assert os.readlink(tmp_path / "last.ckpt") == "step-000000003.ckpt"
    for _ in range(2):
        publish(write_sharded(tmp_path / ".best.0123456789ab.ckpt", content(), 2), tmp_path / "best.ckpt")
    assert len(list(tmp_path.glob("best-*.ckpt"))) == 1 and damage(tmp_path / "best.ckpt") is None
    write_sharded(tmp_path / ".step-000000004.0123456789ab.ckpt", content(), 2)
    remove_partial(tmp_path)
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]
    assert damage(tmp_path / "best.ckpt") is None
    remove(tmp_path / "step-000000002.ckpt")
    assert newest_valid(tmp_path) == step_file(tmp_path, 3)


@pytest.mark.parametrize("new", ["a file", "a folder"])
@pytest.mark.parametrize("old", ["a file", "a folder"])
@pytest.mark.parametrize("moment", range(6))
def test_killed_while_another_of_the_same_step_takes_its_place(moment: int, old: str, new: str, tmp_path: Path) -> None:
    """Before each rename or removal in turn: the old or the new one is there, whole."""
    path = step_file(tmp_path, 1)
    before, after = {**content(), "global_step": 1, "ema": {}}, {**content(), "global_step": 1}

    def write(checkpoint: dict[str, Any], kind: str) -> None:
        if kind == "a file":
            save_checkpoint(checkpoint, path)
        else:
            publish(write_sharded(tmp_path / ".step-000000001.0123456789ab.ckpt", checkpoint, 2), path)

    write(before, old)
    process = multiprocessing.get_context("fork").Process(target=killed_at, args=(moment, write, after, new))
    process.start()
    process.join()
    found = newest_valid(tmp_path)
    assert found is not None
    if process.exitcode == 0:
        assert found == path and [p.name for p in tmp_path.iterdir()] == [path.name]
    else:
        assert process.exitcode == 9
    for _ in range(2):  # what a next run finds, and what it leaves
        assert (found := newest_valid(tmp_path)) is not None
        read = read_checkpoint(found)
        assert equal(read["ema"], before["ema"]) or equal(read["ema"], after["ema"])
        remove_partial(tmp_path)
    write(after, new)
    assert [p.name for p in tmp_path.iterdir()] == [path.name] and equal(read_checkpoint(path)["ema"], after["ema"])


def killed_at(moment: int, write: Any, *arguments: Any) -> None:
    """In a fork: end as SIGKILL does, before this rename or removal."""
    left = [moment]

    def counted(function: Any) -> Any:
        def call(*given: Any, **named: Any) -> Any:
            if left[0] == 0:
                os._exit(9)
            left[0] -= 1
            return function(*given, **named)

        return call

    for module, name in ((os, "rename"), (os, "replace"), (os, "unlink"), (shutil, "rmtree")):
        setattr(module, name, counted(getattr(module, name)))
    write(*arguments)
    os._exit(0)


def test_a_network_is_built_from_either_kind(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "one.ckpt")
    single = read_checkpoint(tmp_path / "one.ckpt")
    write_sharded(tmp_path / "many.ckpt", single, 3)
    one, many = (load_trained(tmp_path / name).network.state_dict() for name in ("one.ckpt", "many.ckpt"))
    assert equal(dict(one), dict(many))


class Trap:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str, ...]]:
        return os.system, (f"touch {self.path}",)


def rewrite_index(folder: Path, **changes: Any) -> None:
    """A forger knows the checksum's rule too."""
    content = json.loads((folder / INDEX).read_text())["content"] | changes
    (folder / INDEX).write_text(json.dumps({"content": content, "sha256": digest_of(content)}))


def test_a_forged_folder_is_refused_and_executes_nothing(tmp_path: Path) -> None:
    folder = write_sharded(tmp_path / "step.ckpt", content(), 2)
    (tmp_path / "secret").write_text("secret")
    index = json.loads((folder / INDEX).read_text())["content"]
    forged: list[dict[str, Any]] = [
        {"files": {**index["files"], "../secret": "0"}},
        {"ranks": 10**9}, {"ranks": -1}, {"ranks": "2"}, {"version": 2}, {"tensors": {"x": ["int8", [1]]}},
        {"tensors": {"x": ["float32", []]}}, {"tensors": {"x": ["float32", [-1]]}}, {"tensors": {}},
        {"tensors": {**index["tensors"], "ema/a": ["float32", [10**15, 3]]}},
    ]  # fmt: skip
    for change in forged:
        rewrite_index(folder, **{**index, **change})
        with pytest.raises(UserError, match="cannot be read as a checkpoint"):
            read_checkpoint(folder)
    rewrite_index(folder, **index)
    (folder / PLAIN).write_bytes(pickle.dumps(Trap(tmp_path / "trapped")))
    with pytest.raises(UserError, match="cannot be read as a checkpoint"):
        read_checkpoint(folder)
    torch.save({"dit4sr": Trap(tmp_path / "trapped")}, folder / PLAIN)
    with pytest.raises(UserError, match="cannot be read as a checkpoint"):
        read_checkpoint(folder)
    assert not (tmp_path / "trapped").exists()
    with pytest.raises(UserError, match="no checkpoint at"):
        read_checkpoint(tmp_path)

"""Reading a checkpoint: damage is found, what is none is named in one line, broken runs are passed over."""

from __future__ import annotations

import pickle
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_checkpoint import write_checkpoint, write_sharded

from dit4sr.errors import UserError
from dit4sr.models.checkpoint import load_trained, read_checkpoint
from dit4sr.trained_runs import newest_checkpoint


def flip(path: Path, at: bytes) -> None:
    """Flip a bit of the first place that holds these bytes."""
    content = bytearray(path.read_bytes())
    content[content.index(at)] ^= 0x10
    path.write_bytes(content)


def test_a_flipped_bit_of_the_weights_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "last.ckpt"
    write_checkpoint(path)
    whole = read_checkpoint(path)
    weights = next(value for value in whole["ema"].values() if value.numel() > 100 and value.std() > 0)
    flip(path, weights.flatten()[:8].numpy().tobytes())
    for read in (read_checkpoint, load_trained):
        with pytest.raises(UserError, match=r"last\.ckpt cannot be read as a checkpoint: its part .* is damaged") as at:
            read(path)
        assert "\n" not in str(at.value) and "step-<n>.ckpt" in str(at.value)
    # What was verified a moment before is not read twice.
    assert set(read_checkpoint(path, verified=True)) == set(whole)


def test_a_flipped_bit_of_a_shard_is_refused(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "one.ckpt")
    folder = write_sharded(tmp_path / "many.ckpt", read_checkpoint(tmp_path / "one.ckpt"), 2)
    shard = next(folder.glob("shard-*"))
    content = bytearray(shard.read_bytes())
    content[-3] ^= 1
    shard.write_bytes(content)
    with pytest.raises(UserError, match=rf"its file {shard.name} is damaged"):
        load_trained(folder)


def text(path: Path) -> None:
    path.write_text("hello world\n")


def settings(path: Path) -> None:
    path.write_text("a: 1\nb: [2]\n")


def plain_pickle(path: Path) -> None:
    path.write_bytes(pickle.dumps({"dit4sr": 1}))


def module(path: Path) -> None:
    torch.save(torch.nn.Linear(2, 2), path)


def program(path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), path)


def empty(path: Path) -> None:
    path.touch()


@pytest.mark.parametrize(
    ("write", "words"),
    [
        (text, "it is no checkpoint of this framework: give one that train.py wrote"),
        (settings, "it is no checkpoint of this framework"),
        (plain_pickle, "it is no checkpoint of this framework"),
        (module, "it holds more than tensors and plain values"),
        (program, "it holds more than tensors and plain values"),
        (empty, "it is empty"),
    ],
)
def test_what_is_no_checkpoint_is_one_plain_line(write: Any, words: str, tmp_path: Path) -> None:
    path = tmp_path / "given.ckpt"
    write(path)
    with warnings.catch_warnings(), pytest.raises(UserError) as caught:
        warnings.simplefilter("error")
        read_checkpoint(path)
    line = str(caught.value)
    assert line.startswith(f"{path} cannot be read as a checkpoint: ") and words in line
    assert "\n" not in line and "\x1b" not in line and "weights_only" not in line


BROKEN = {
    "syntax": b"a: [1",
    "a name": b"model: dit4sr\nbackbone: nano\n",
    "half": b"model: {name: dit4sr}\n",
    "latin": "model: {name: dit4sr}\n# é\n".encode("latin-1"),
    "empty": b"",
    "list": b"- 1\n",
}


@pytest.mark.parametrize("broken", BROKEN)
def test_a_run_with_a_broken_config_is_passed_over(broken: str, tmp_path: Path) -> None:
    for name, config in (("broken", BROKEN[broken]), ("whole", b"model: {name: dit4sr}\nbackbone: {name: nano}\n")):
        (tmp_path / name / "checkpoints").mkdir(parents=True)
        (tmp_path / name / "checkpoints" / "last.ckpt").touch()
        (tmp_path / name / "config.yaml").write_bytes(config)
    assert newest_checkpoint(tmp_path, "dit4sr") == tmp_path / "whole" / "checkpoints" / "last.ckpt"
    with pytest.raises(
        UserError, match=r"no checkpoint of model=variant_a .* \(there are model=dit4sr backbone=nano\)"
    ):
        newest_checkpoint(tmp_path, "variant_a")

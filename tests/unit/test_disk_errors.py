"""A full disk, or a folder that cannot be written to, is one line that says where and what to do."""

from __future__ import annotations

import errno
import os
import resource
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from tiny_checkpoint import compose_verb, write_checkpoint, write_pairs

from dit4sr import export
from dit4sr.errors import UserError
from dit4sr.evaluation.run import run as evaluate
from dit4sr.files import check_folder, disk_errors, write_atomically

ROOT = Path(__file__).parents[2]


@contextmanager
def room_for(size: int) -> Iterator[None]:
    """No file can become larger than ``size`` bytes: what a full disk does to the writer."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def visible(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def test_the_file_that_did_not_fit_is_named_and_not_there(tmp_path: Path) -> None:
    line = rf"^no space left on the disk of {tmp_path}/a\.txt: make room and run the same command again, or give anot"

    def write() -> None:
        with disk_errors(tmp_path), room_for(100), write_atomically(tmp_path / "a.txt") as temporary:
            temporary.write_bytes(bytes(200))

    with pytest.raises(UserError, match=line):
        write()
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (OSError(errno.ENOSPC, "full"), "no space left on the disk of out: .* goes on where it stopped$"),
        (OSError(errno.EDQUOT, "full"), "no space left on the disk of out:"),
        (OSError(errno.ENOSPC, "full", "read.png", None, "out/copy.png"), "no space left on the disk of out/copy.png:"),
        (OSError(errno.EROFS, "no", "out/a"), "^out/a: Read-only file system: mend that, or give another output=<fol"),
        (OSError(errno.EACCES, "no", "/in/a"), "^/in/a: Permission denied: mend that and run the same command again$"),
        (OSError(errno.ENOTDIR, "no", "out/a/b"), "^out/a/b: Not a directory: mend that, or give another"),
        (OSError(errno.ENOENT, "no", "out"), "^out: No such file or directory: mend that, or give another"),
    ],
)
def test_errors_of_the_disk(error: OSError, words: str) -> None:
    with pytest.raises(UserError, match=words), disk_errors(Path("out"), setting="output", goes_on=True):
        raise error


@pytest.mark.parametrize(
    "error",
    [
        FileNotFoundError(errno.ENOENT, "no such file", "out/forgotten.csv"),
        NotADirectoryError(errno.ENOTDIR, "not a directory", "/elsewhere/a"),
        ConnectionRefusedError(errno.ECONNREFUSED, "refused"),
        PermissionError(errno.EACCES, "of a port, which has no file"),
        OSError("cannot identify image file"),
        TypeError("a mistake of ours"),
    ],
)
def test_other_errors_stay_what_they_are(error: Exception) -> None:
    with pytest.raises(type(error)) as raised, disk_errors(Path("out")):
        raise error
    assert raised.value is error


def test_a_place_that_no_folder_can_have(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for out in (tmp_path / "file", tmp_path / "file" / "x" / "y"):
        with pytest.raises(UserError, match=rf"^out={out}: {tmp_path}/file is a file: give another out=<folder>$"):
            check_folder(out)
    check_folder(tmp_path / "new" / "folder")
    assert not (tmp_path / "new").exists()


def test_evaluate_on_a_full_disk_goes_on_when_there_is_room(tmp_path: Path) -> None:
    write_pairs(tmp_path, ["ant", "bee"])
    out = tmp_path / "out"
    given = ["method=bicubic", "benchmark=folder", f"benchmark.lq={tmp_path}/lq", f"benchmark.hq={tmp_path}/hq"]
    config = compose_verb("evaluate", *given, f"out={out}", "device=cpu")
    line = rf"no space left on the disk of {out}/.*goes on where it stopped"
    with pytest.raises(UserError, match=line), room_for(5000):
        evaluate(config)
    assert not set(visible(out)) & {"table.md", "summary.json", "comparison.png", "restored/bee.png"}
    assert evaluate(config) == 0
    assert (out / "comparison.png").is_file()


@pytest.mark.parametrize("what", export.WHAT)
def test_export_on_a_full_disk_leaves_nothing(tmp_path: Path, what: str) -> None:
    write_checkpoint(tmp_path / "last.ckpt", "backbone=nano")
    config = compose_verb("export", f"what={what}", f"ckpt={tmp_path}/last.ckpt", f"out={tmp_path}/x")
    with pytest.raises(UserError, match=rf"no space left on the disk of {tmp_path}/x"), room_for(5000):
        export.run(config)
    assert [path.name for path in tmp_path.iterdir()] == ["last.ckpt"]


def test_export_below_a_file_and_sizes_that_are_none(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=f"out={tmp_path}/file/x: {tmp_path}/file is a file"):
        export.run(compose_verb("export", f"ckpt={tmp_path}", f"out={tmp_path}/file/x"))
    with pytest.raises(UserError, match="max_shard_size=abc: give a size such as 5GB"):
        export.run(compose_verb("export", f"ckpt={tmp_path}", f"out={tmp_path}/x", "max_shard_size=abc"))


def test_any_verb_says_it_without_a_traceback(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "dit4sr.data.preview", "samples=1", f"out={tmp_path}"]
    shell = shutil.which("sh")
    assert shell is not None
    done = subprocess.run(
        [shell, "-c", 'ulimit -f 1; exec "$@"', "sh", *command],
        cwd=ROOT,
        capture_output=True,
        text=True,
        env=os.environ,
    )
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert done.stderr.splitlines()[-1].startswith(f"error: no space left on the disk of {tmp_path}/preview.png: make")
    assert not list(tmp_path.iterdir())

"""restore: which files are found, whatever their names, and what happens where nothing can be written."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image
from restoring import restore
from tiny_checkpoint import load, picture, save

from dit4sr.errors import UserError
from dit4sr.restoration.finding import find_jobs
from dit4sr.restoration.results import is_whole


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 64 KiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "none", folder], capture_output=True)
    if mounted.returncode:
        pytest.skip("mounting a small file system is not permitted here")
    yield folder
    subprocess.run(["umount", "-l", folder], check=True)


def names(source: Path | str, output: Path, *, recursive: bool = True) -> list[str]:
    return [job.name for job in find_jobs(str(source), output, recursive=recursive).jobs]


def verb(*arguments: str | Path) -> list[str]:
    common = ["sampler.steps=1", "device=cpu"]
    return [sys.executable, "-m", "dit4sr", "restore", *map(str, arguments), *common]


def test_links_are_followed_once(tmp_path: Path) -> None:
    save(tmp_path / "elsewhere" / "a.png", picture(16, 16, 0))
    photos = tmp_path / "in"
    save(photos / "deep" / "b.png", picture(16, 16, 0))
    (photos / "link.png").symlink_to(tmp_path / "elsewhere" / "a.png")
    (photos / "album").symlink_to(tmp_path / "elsewhere")
    (photos / "deep" / "loop").symlink_to(photos)
    (photos / "gone.png").symlink_to(tmp_path / "nowhere.png")
    (photos / "self.png").symlink_to("self.png")
    found = names(photos, tmp_path / "out")
    assert found == ["album/a.png", "deep/b.png", "gone.png", "link.png", "self.png"]


def test_a_link_to_nothing_is_a_bad_photo(tmp_path: Path, checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save(tmp_path / "in" / "a.png", picture(16, 16, 0))
    (tmp_path / "in" / "gone.png").symlink_to(tmp_path / "nowhere.png")
    (tmp_path / "in" / "self.png").symlink_to("self.png")
    assert restore(tmp_path / "in", tmp_path / "out", checkpoint) == 1
    said = capsys.readouterr().out
    assert "gone.png: cannot be read: No such file or directory" in said and "1 of 3 photos restored" in said
    assert "self.png: cannot be read: Too many levels of symbolic links" in said
    with pytest.raises(UserError, match="is a link to what is not there"):
        restore(tmp_path / "in" / "gone.png", tmp_path / "out", checkpoint)


def test_any_name(tmp_path: Path, checkpoint: Path) -> None:
    odd = [
        f"{'x' * 251}.png",
        "größe 1.PNG",
        "a [x].png",
        "b*?.png",
        "a,b=c.png",
        "日本.png",
        "'quoted'.png",
        "{x}.png",
        "-n.png",
    ]
    folder = tmp_path / "trip [2024]"
    for name in odd:
        save(folder / name, picture(16, 16, 0))
    latin = os.fsdecode(b"caf\xe9.png")  # no UTF-8
    (folder / latin).write_bytes((folder / "{x}.png").read_bytes())
    assert restore(folder, tmp_path / "out", checkpoint) == 0
    expected = {Path(name).with_suffix(".png").name for name in [*odd, latin]}
    assert {p.name for p in (tmp_path / "out").iterdir()} == expected
    assert restore(folder / "a [x].png", tmp_path / "one", checkpoint) == 0
    assert names(f"{folder}/a*.png", tmp_path / "glob") == ["a [x].png", "a,b=c.png"]
    assert names(f"{tmp_path}/trip*/*.png", tmp_path / "glob")[0] == "trip [2024]/'quoted'.png"


def test_formats_that_are_not_read_are_mentioned(
    tmp_path: Path, checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save(tmp_path / "in" / "a.png", picture(16, 16, 0))
    for name in ("b.HEIC", "deep/c.heic", "a.cr2"):
        (tmp_path / "in" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "in" / name).write_bytes(b"\0\0\0\x18ftypheic")
    assert restore(tmp_path / "in", tmp_path / "out", checkpoint) == 0
    assert "left out, of formats that cannot be read here: 1 .cr2, 2 .heic" in capsys.readouterr().out
    assert restore(tmp_path / "in" / "b.HEIC", tmp_path / "out", checkpoint) == 1
    assert "b.HEIC: of a format that cannot be read: save it as" in capsys.readouterr().out


def test_results_among_the_photos_are_not_photos(tmp_path: Path, checkpoint: Path) -> None:
    (tmp_path / "in").mkdir()
    Image.fromarray(picture(16, 16, 0)).save(tmp_path / "in" / "a.jpg")
    for _ in range(2):
        assert restore(tmp_path / "in", tmp_path / "in", checkpoint) == 0
    assert sorted(p.name for p in (tmp_path / "in").iterdir()) == ["a.jpg", "a.png"]


def test_a_folder_in_a_result_s_place_fails_that_photo_alone(
    tmp_path: Path, checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("a", "b"):
        save(tmp_path / "in" / f"{name}.png", picture(16, 16, 0))
    (tmp_path / "out" / "a.png").mkdir(parents=True)
    assert restore(tmp_path / "in", tmp_path / "out", checkpoint) == 1
    assert "a.png cannot be written: Is a directory" in capsys.readouterr().out
    assert load(tmp_path / "out" / "b.png").shape == (64, 64, 3)


def test_an_output_below_a_file_is_refused(tmp_path: Path, checkpoint: Path) -> None:
    save(tmp_path / "in" / "a.png", picture(16, 16, 0))
    with pytest.raises(UserError, match=r"a\.png is a file: give another output=<folder>"):
        restore(tmp_path / "in", tmp_path / "in" / "a.png" / "deep", checkpoint)


def test_a_full_disk_keeps_what_is_done(
    tmp_path: Path, small_disk: Path, checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for number in range(9):
        save(tmp_path / "in" / f"{number}.png", picture(16, 16, number))
    with pytest.raises(UserError, match="cannot be written: No space left on device"):
        restore(tmp_path / "in", small_disk / "out", checkpoint)
    written = sorted((small_disk / "out").iterdir())
    assert 0 < len(written) < 9
    assert [p.name for p in written] == [f"{n}.png" for n in range(len(written))]
    assert all(load(p).shape == (64, 64, 3) for p in written)
    assert f"{len(written)} of 9 photos restored" in capsys.readouterr().out


def test_a_disk_that_cannot_be_written_is_refused_at_once(tmp_path: Path, small_disk: Path) -> None:
    save(tmp_path / "in" / "a.png", picture(16, 16, 0))
    subprocess.run(["mount", "-o", "remount,ro", small_disk], check=True)
    with pytest.raises(UserError, match="cannot be written to: give another output=<folder>"):
        restore(tmp_path / "in", small_disk / "out", tmp_path / "no checkpoint is looked for")


def test_a_limit_on_files_is_one_line(tmp_path: Path, checkpoint: Path) -> None:
    save(tmp_path / "in" / "a.png", picture(40, 40, 0))
    command = verb(f"input={tmp_path}/in", f"output={tmp_path}/out", f"ckpt={checkpoint}")
    done = subprocess.run(
        ["sh", "-c", 'ulimit -f 8; exec "$@"', "sh", *command], capture_output=True, text=True, timeout=600, check=False
    )
    assert done.returncode == 2, done.stderr
    assert [line for line in done.stderr.splitlines() if line.startswith("error: ")] == [
        f"error: {tmp_path}/out/a.png cannot be written: File too large; mend that, or give another output=…; "
        "what is done is kept"
    ]
    assert "Traceback" not in done.stderr
    assert list((tmp_path / "out").iterdir()) == []


def test_an_interruption_keeps_what_is_done(tmp_path: Path, checkpoint: Path) -> None:
    for number in range(400):
        save(tmp_path / "in" / f"{number:03}.png", picture(16, 16, 0))
    # Many steps, so that even a fast machine is not done before it is interrupted.
    command = verb(f"input={tmp_path}/in", f"output={tmp_path}/out", f"ckpt={checkpoint}", "sampler.steps=60")
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # A shell starts what it runs in the background with the interrupt ignored, and that is inherited.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    try:
        deadline = time.monotonic() + 100
        while len(list((tmp_path / "out").glob("*.png"))) < 3 and process.poll() is None:
            assert time.monotonic() < deadline
            time.sleep(0.02)
        process.send_signal(signal.SIGINT)
        stdout, stderr = process.communicate(timeout=600)
    finally:
        process.kill()
    results = list((tmp_path / "out").iterdir())
    assert process.returncode == 130, stderr
    assert "interrupted" in stderr and "Traceback" not in stderr
    assert f"{len(results)} of 400 photos restored" in stdout
    assert 3 <= len(results) < 400
    assert all(is_whole(p) for p in results)

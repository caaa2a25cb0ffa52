"""`prepare` as a process: killed, shared out, disturbed, and short of room; always to the same bytes."""

import io
import multiprocessing
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import pytest
import stand_in_slurm
from preparing import config, contents, noise, prepare_killed_at, prepare_with_little_room, samples

from dit4sr.data.images import encode_image, write_png
from dit4sr.data.prepare import ensure_embedded, prepare
from dit4sr.data.shard_index import index_shard
from dit4sr.data.shards import read_manifest
from dit4sr.errors import UserError

ROOT = Path(__file__).parents[2]
PROCESSES = multiprocessing.get_context("forkserver")  # clean processes that start in no time
PROCESSES.set_forkserver_preload(["dit4sr.data.prepare", "dit4sr.data.preparation.running", "webdataset.writer"])


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Twenty photos, among them two copies, a flat one, a small one and a broken one."""
    folder = tmp_path_factory.mktemp("source") / "photos"
    for k in range(15):
        write_png(folder / f"{k % 3}" / f"{k:02d}.png", noise(k))
    shutil.copy(folder / "0" / "00.png", folder / "2" / "copy.png")
    (folder / "1" / "copy.webp").write_bytes(encode_image(noise(2), "webp", 100))
    write_png(folder / "1" / "flat.png", noise(0) // 128)
    write_png(folder / "1" / "small.png", noise(0, 20))
    (folder / "0" / "broken.png").write_bytes(b"broken")
    return folder


def settings(tmp_path, photos, **changes):
    """Seven units of three photos, with a benchmark."""
    base = {"source": str(photos), "held_out": 0.2, "benchmark_crop": 48, "samples_per_shard": 9, "seed": 1}
    return config(tmp_path, **{**base, **changes})


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory, photos):
    tmp_path = tmp_path_factory.mktemp("undisturbed")
    assert prepare(settings(tmp_path, photos, out=str(tmp_path / "out"))) == 1
    found = contents(tmp_path / "out")
    counts = read_manifest(tmp_path / "out" / "train")["counts"]
    assert counts["photos"] + counts["held_out"] == 15
    assert counts["held_out"] > 0
    assert counts["skipped"] == 5
    assert all(not name.startswith(".") and "/." not in name for name in found)
    return found


def run(target, *arguments):
    process = PROCESSES.Process(target=target, args=arguments)
    process.start()
    process.join(600)
    return process.exitcode


def assert_only_whole_shards(out):
    """Whatever has a final name can be read to its end, and there is no manifest before everything is there."""
    for shard in out.rglob("*.tar"):
        if not shard.name.startswith("."):
            assert index_shard(shard)
    if manifest := read_manifest(out / "train"):
        assert all((out / "train" / s["name"]).stat().st_size == s["bytes"] for s in manifest["shards"])


def test_killed_again_and_again(tmp_path, photos, undisturbed):
    """Every start dies at one of its first renames, also during the merge, until one of them gets through."""
    rng = random.Random(0)
    cfg = settings(tmp_path, photos, out=str(tmp_path / "out"))
    codes = []
    while len(codes) < 100 and codes[-1:] != [1]:
        codes.append(run(prepare_killed_at, cfg, rng.randint(3, 8), rng.random() < 0.5))
        assert_only_whole_shards(tmp_path / "out")
    assert codes[:-1] == [-signal.SIGKILL] * (len(codes) - 1)
    assert len(codes) > 5
    assert contents(tmp_path / "out") == undisturbed


def test_processes_and_parts_change_nothing(tmp_path, photos, undisturbed):
    assert prepare(settings(tmp_path, photos, out=str(tmp_path / "two"), processes=2)) == 1
    assert contents(tmp_path / "two") == undisturbed
    cfg = settings(tmp_path, photos, out=str(tmp_path / "four"))
    with pytest.raises(UserError, match="run the parts first"):
        prepare({**cfg, "merge": True})
    assert not (tmp_path / "four").exists()
    codes = [prepare({**cfg, "part": f"{part}/4"}) for part in (3, 0, 1)]
    assert sorted(codes) == [0, 0, 1]  # one of them has the broken photo
    assert not (tmp_path / "four" / "train").exists()
    with pytest.raises(UserError, match=r"2 of 7 units .* part=2/4 must be run first"):
        prepare({**cfg, "merge": True})
    prepare({**cfg, "part": "2/4"})
    assert prepare({**cfg, "merge": True}) == 1
    assert contents(tmp_path / "four") == undisturbed


def test_photos_that_come_and_go_between_two_starts(tmp_path, photos):
    changing = tmp_path / "photos"
    shutil.copytree(photos, changing)
    (changing / "0" / "00.png").unlink()
    cfg = settings(tmp_path, changing, out=str(tmp_path / "out"))
    assert run(prepare_killed_at, cfg, 12, True) == -signal.SIGKILL
    shutil.copy(photos / "0" / "00.png", changing / "0" / "00.png")
    write_png(changing / "3" / "new.png", noise(99))
    assert prepare(cfg) == 1
    assert prepare({**cfg, "out": str(tmp_path / "fresh")}) == 1
    assert contents(tmp_path / "out") == contents(tmp_path / "fresh")


def test_unfinished_work_of_other_settings_is_not_lost_by_accident(tmp_path, photos, undisturbed):
    cfg = settings(tmp_path, photos, out=str(tmp_path / "out"))
    assert run(prepare_killed_at, {**cfg, "seed": 5}, 12, True) == -signal.SIGKILL
    with pytest.raises(UserError, match=r"unfinished work of other settings \(seed\)"):
        prepare(cfg)
    assert prepare({**cfg, "overwrite": True}) == 1
    assert contents(tmp_path / "out") == undisturbed


def test_a_full_disk_is_one_line_and_loses_nothing(tmp_path, photos, undisturbed):
    cfg = settings(tmp_path, photos, out=str(tmp_path / "out"))
    for processes in (1, 2):
        message = tmp_path / f"{processes}.txt"
        assert run(prepare_with_little_room, {**cfg, "processes": processes}, 10_000, message) == 2
        assert message.read_text().startswith("no space left on the disk of ")
        assert "\n" not in message.read_text()
        assert_only_whole_shards(tmp_path / "out")
    assert prepare(cfg) == 1
    assert contents(tmp_path / "out") == undisturbed


def command(*overrides):
    line = [sys.executable, str(ROOT / "prepare.py"), "patch=32", "patches_per_photo=3", *overrides]
    return line, {"cwd": ROOT, "env": {**os.environ, "OMP_NUM_THREADS": "1"}, "text": True}


def test_two_at_once_and_a_kill_with_processes(tmp_path, photos, undisturbed):
    """A second prepare is refused, also by a part; a kill of the first ends its workers, and the next one finishes."""
    out = tmp_path / "out"
    overrides = (
        *(f"source={photos}", f"out={out}", f"paths.data={tmp_path}", "held_out=0.2", "benchmark_crop=48", "seed=1"),
        *("samples_per_shard=9", f"paths.outputs={tmp_path}"),
    )
    line, options = command(*overrides, "processes=2")
    first = subprocess.Popen(
        line, **options, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    )
    deadline = time.monotonic() + 600
    while not list(out.glob(".work-*/settings.json")):
        assert time.monotonic() < deadline
        assert first.poll() is None
        time.sleep(0.01)
    os.kill(first.pid, signal.SIGSTOP)
    cfg = settings(tmp_path, photos, out=str(out))
    try:
        if not (out / "train" / "manifest.json").exists():
            with pytest.raises(UserError, match="another prepare is writing"):
                prepare(cfg)
    finally:
        os.kill(first.pid, signal.SIGKILL)
    first.wait()
    assert_only_whole_shards(out)
    while any(name == str(first.pid) for name in sessions()):
        assert time.monotonic() < deadline, "the workers outlive the process that was killed"
        time.sleep(0.05)
    assert prepare(cfg) == 1
    assert contents(out) == undisturbed


def sessions():
    """The session of every process but zombies."""
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if fields[0] != "Z":
            yield fields[3]


@pytest.mark.parametrize("launcher", ["basic", "joblib", "slurm"])
def test_parts_by_hydras_launchers(tmp_path, photos, undisturbed, launcher):
    if launcher != "basic":
        plugin = {"slurm": "submitit"}.get(launcher, launcher)
        pytest.importorskip(f"hydra_plugins.hydra_{plugin}_launcher")
    out = tmp_path / "out"
    overrides = (
        *(f"source={photos}", f"out={out}", f"paths.data={tmp_path}", "held_out=0.2", "benchmark_crop=48", "seed=1"),
        *("samples_per_shard=9", f"paths.outputs={tmp_path / 'outputs'}"),
    )
    line, options = command(f"hydra/launcher={launcher}", "part=0/3,1/3,2/3", *overrides, "-m")
    if launcher == "slurm":
        options["env"]["PATH"] = stand_in_slurm.install(tmp_path / "slurm")["PATH"]
    done = subprocess.run(line, **options, capture_output=True, timeout=800)
    logs = "".join(path.read_text() for path in tmp_path.glob("outputs/prepare/*/*/.submitit/*/*_log.out"))
    printed = logs if launcher == "slurm" else done.stdout
    assert printed.count("is done") == 3, done.stderr
    assert "skipped 0/broken.png" in printed
    # One part has the broken photo: the command says so, also where another process ran it.
    assert done.returncode == 1
    [listed] = [line for line in done.stderr.splitlines() if line.startswith("not done: ")]
    assert re.fullmatch(r"not done: part=[012]/3: partly done, see what it printed", listed)
    if launcher == "joblib":  # whose jobs are processes: an error must find its way back
        failed = subprocess.run([*line[:-1], "policy=spiral", "-m"], **options, capture_output=True, timeout=800)
        assert failed.returncode == 2
        assert "error: policy=spiral: choose one of random, grid, centre" in failed.stderr
        assert "Traceback" not in failed.stderr
    assert prepare(settings(tmp_path, photos, out=str(out), merge=True)) == 1
    assert contents(out) == undisturbed


def test_trainings_that_make_the_embedded_shards_at_once(tmp_path):
    both = [PROCESSES.Process(target=ensure_embedded, args=(tmp_path,)) for _ in range(2)]
    for process in both:
        process.start()
    for process in both:
        process.join(600)
    assert [process.exitcode for process in both] == [0, 0]
    assert len(samples(tmp_path / "embedded")) == 624
    assert sorted(path.name for path in (tmp_path / "embedded").iterdir()) == ["benchmark", "photos.jsonl", "train"]


def test_names_out_of_a_tar_do_not_reach_the_terminal_as_they_are(tmp_path, capsys):
    with tarfile.open(tmp_path / "shard.tar", "w") as shard:
        for name, data in (("a.png", encode_image(noise(0), "png", 100)), ("b\n\x1b[2J.png", b"broken")):
            member = tarfile.TarInfo(name)
            member.size = len(data)
            shard.addfile(member, io.BytesIO(data))
    assert prepare(config(tmp_path, source=str(tmp_path / "shard.tar"), out=str(tmp_path / "out"))) == 1
    printed = capsys.readouterr().out
    assert "\x1b" not in printed and "skipped shard/b\ufffd\ufffd[2J: " in printed

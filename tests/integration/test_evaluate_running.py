"""How an evaluation runs: killed and continued, by two processes, under several seeds, again without restoring."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_checkpoint import compose_verb, load, save, write_checkpoint, write_pairs

from dit4sr.errors import UserError
from dit4sr.evaluation import journal
from dit4sr.evaluation.run import run
from dit4sr.evaluation.tables import read_rows

NAMES = ["ant", "bee", "cat", "dog", "elk"]


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("benchmark")
    write_pairs(folder, NAMES)
    return folder


@pytest.fixture(scope="module")
def ckpt(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("outputs") / "last.ckpt"
    write_checkpoint(path)
    return path


def given(pairs: Path, out: Path, *overrides: str) -> list[str]:
    folders = ["benchmark=folder", f"benchmark.lq={pairs / 'lq'}", f"benchmark.hq={pairs / 'hq'}", f"out={out}"]
    return [*folders, "sampler.steps=1", "device=cpu", *overrides]


def evaluate(pairs: Path, out: Path, *overrides: str) -> int:
    options = given(pairs, out, *overrides)
    return run(compose_verb("evaluate", *options), {option.split("=")[0] for option in options})


def command(pairs: Path, out: Path, *overrides: str) -> list[str]:
    return [sys.executable, "-m", "dit4sr", "evaluate", *given(pairs, out, *overrides)]


@pytest.fixture(scope="module")
def one_process(tmp_path_factory: pytest.TempPathFactory, pairs: Path, ckpt: Path) -> Path:
    out = tmp_path_factory.mktemp("one")
    assert evaluate(pairs, out, f"ckpt={ckpt}", "seeds=[3,5]", "batch_size=2") == 0
    return out


def test_two_processes_give_the_same_files(tmp_path: Path, pairs: Path, ckpt: Path, one_process: Path) -> None:
    options = (f"ckpt={ckpt}", "seeds=[3,5]", "batch_size=2", "processes=2")
    done = subprocess.run(command(pairs, tmp_path, *options), capture_output=True, text=True, timeout=800, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert (tmp_path / "per_image.csv").read_bytes() == (one_process / "per_image.csv").read_bytes()
    shares = [len(p.read_text().splitlines()) for p in sorted((tmp_path / "journal").glob("process*.jsonl"))]
    assert len(shares) == 2
    assert min(shares) > 0
    assert sum(shares) == 2 * len(NAMES)
    for folder in ("restored", "restored_seed5"):
        for name in NAMES:
            assert np.array_equal(load(tmp_path / folder / f"{name}.png"), load(one_process / folder / f"{name}.png"))
    assert done.stdout.count("| dit4sr") == 1  # one of them talks


def test_several_seeds_have_rows_means_and_a_deviation(one_process: Path) -> None:
    rows = [r for r in read_rows(one_process / "per_image.csv") if r.metric == "psnr"]
    assert [(r.seed) for r in rows if (r.image, r.method) == ("ant", "dit4sr")] == [3, 5]
    assert [(r.seed) for r in rows if (r.image, r.method) == ("ant", "bicubic")] == [3]
    by_seed = [np.mean([r.value for r in rows if r.method == "dit4sr" and r.seed == s]) for s in (3, 5)]
    summary = json.loads((one_process / "summary.json").read_text())
    found = summary["variation"]["dit4sr"]["psnr"]
    assert found["over"] == "seeds"
    assert found["means"] == pytest.approx(by_seed)
    assert found["std"] == pytest.approx(np.std(by_seed, ddof=1))
    assert summary["methods"]["dit4sr"]["psnr"]["mean"] == pytest.approx(np.mean(by_seed))
    assert summary["methods"]["dit4sr"]["psnr"]["n"] == len(NAMES)
    assert "mean ± deviation over 2 seeds: psnr" in (one_process / "table.md").read_text()
    first, second = (load(one_process / folder / "ant.png") for folder in ("restored", "restored_seed5"))
    assert not np.array_equal(first, second)


def test_the_seeds_are_those_of_single_runs(tmp_path: Path, pairs: Path, ckpt: Path, one_process: Path) -> None:
    assert evaluate(pairs, tmp_path, f"ckpt={ckpt}", "seed=5", "batch_size=2") == 0
    assert np.array_equal(load(tmp_path / "restored" / "cat.png"), load(one_process / "restored_seed5" / "cat.png"))


def test_a_killed_evaluation_continues(tmp_path: Path, pairs: Path, ckpt: Path, one_process: Path) -> None:
    options = (f"ckpt={ckpt}", "seeds=[3,5]", "batch_size=2")
    lines = tmp_path / "journal" / "process0.jsonl"
    process = subprocess.Popen(command(pairs, tmp_path, *options), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    ends = time.monotonic() + 600
    while time.monotonic() < ends and process.poll() is None and not (lines.is_file() and lines.stat().st_size):
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert lines.is_file()
    # As a kill in the middle of a write leaves it: the last line cut off.
    kept = lines.read_text().splitlines()[:3]
    lines.write_text("\n".join(kept) + "\n" + kept[0][:40])
    (tmp_path / "per_image.csv").unlink(missing_ok=True)
    pictures = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "restored").glob("*.png")}
    finished = [(entry.image, entry.seed) for entry in journal.read(lines.parent).values()]
    assert finished

    assert evaluate(pairs, tmp_path, *options) == 0
    assert (tmp_path / "per_image.csv").read_bytes() == (one_process / "per_image.csv").read_bytes()
    entries = [json.loads(line) for line in lines.read_text().splitlines() if line.endswith("}")]
    assert len({(e["image"], e["seed"]) for e in entries}) == len(entries) == 2 * len(NAMES)
    # A block that was finished as a whole is not restored again.
    whole = [name for pair in (NAMES[:2],) if all((n, 3) in finished for n in pair) for name in pair]
    assert all((tmp_path / "restored" / f"{n}.png").stat().st_mtime_ns == pictures[f"{n}.png"] for n in whole)


def test_a_finished_evaluation_is_not_done_again_and_another_is_not_mixed_in(
    tmp_path: Path, pairs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert evaluate(pairs, tmp_path, "method=bicubic") == 0
    before = (tmp_path / "restored" / "ant.png").stat().st_mtime_ns
    capsys.readouterr()
    assert evaluate(pairs, tmp_path, "method=bicubic") == 0
    assert "5 of 5 images are finished" in capsys.readouterr().out
    assert (tmp_path / "restored" / "ant.png").stat().st_mtime_ns == before

    (tmp_path / "restored" / "bee.png").unlink()
    assert evaluate(pairs, tmp_path, "method=bicubic") == 0
    assert "4 of 5 images are finished" in capsys.readouterr().out
    assert (tmp_path / "restored" / "bee.png").is_file()

    assert evaluate(pairs, tmp_path, "method=bicubic", "metrics.protocol=rgb") == 0
    said = capsys.readouterr().out
    assert "other settings (metrics)" in said
    assert "are finished" not in said
    assert {r.protocol for r in read_rows(tmp_path / "per_image.csv") if r.metric == "psnr"} == {"rgb"}

    assert evaluate(pairs, tmp_path, "method=bicubic", "metrics.protocol=rgb", "resume=never") == 0
    assert "are finished" not in capsys.readouterr().out


def test_two_evaluations_do_not_write_into_one_folder(tmp_path: Path, pairs: Path) -> None:
    assert evaluate(pairs, tmp_path, "method=bicubic") == 0
    held = journal.Journal(tmp_path / "journal", 0)
    with pytest.raises(UserError, match="another evaluation is writing"):
        evaluate(pairs, tmp_path, "method=bicubic")
    held.close()
    assert evaluate(pairs, tmp_path, "method=bicubic") == 0


def test_a_file_where_the_folder_should_be_is_one_line(tmp_path: Path, pairs: Path) -> None:
    (tmp_path / "file").write_text("somebody's")
    with pytest.raises(UserError, match=r"file is a file: give another out=<folder>"):
        evaluate(pairs, tmp_path / "file" / "out", "method=bicubic")
    assert (tmp_path / "file").read_text() == "somebody's"


def test_restored_images_say_what_they_are(one_process: Path) -> None:
    facts = json.loads(Image.open(one_process / "restored_seed5" / "bee.png").text["dit4sr"])
    assert (facts["image"], facts["seed"], facts["benchmark"], facts["method"]["name"]) == (
        "bee",
        5,
        "folder",
        "dit4sr",
    )
    assert facts["method"]["sampler"]["steps"] == 1
    assert facts["method"]["ckpt"].endswith("last.ckpt")


def test_metrics_only_measures_the_images_that_are_there(tmp_path: Path, pairs: Path, ckpt: Path) -> None:
    assert evaluate(pairs, tmp_path, f"ckpt={ckpt}") == 0
    first = read_rows(tmp_path / "per_image.csv")
    ckpt_gone = f"ckpt={tmp_path / 'none.ckpt'}"
    again = ["metrics_only=true", f"out={tmp_path}", "metrics.names=[psnr,ssim,psnr@rgb]", ckpt_gone]
    config = compose_verb("evaluate", *again)
    assert run(config, {"metrics_only", "out", "metrics.names"}) == 0
    rows = read_rows(tmp_path / "per_image.csv")
    assert {row.metric for row in rows} == {"psnr", "ssim", "psnr@rgb"}
    assert [r for r in rows if r.metric == "psnr"] == [r for r in first if r.metric == "psnr"]
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["method"]["name"] == "dit4sr"
    assert summary["settings"]["metrics_only"]
    with pytest.raises(UserError, match="give out=<folder of an evaluation>"):
        run(compose_verb("evaluate", "metrics_only=true", f"out={tmp_path / 'nothing'}"), {"metrics_only", "out"})
    # Somebody's later change of an image changes its values, and no earlier value is kept for it.
    save(tmp_path / "restored" / "ant.png", load(pairs / "hq" / "ant.png"))
    assert run(compose_verb("evaluate", *again), {"metrics_only", "out", "metrics.names"}) == 0
    rows = read_rows(tmp_path / "per_image.csv")
    assert [r.value for r in rows if (r.image, r.method, r.metric) == ("ant", "dit4sr", "psnr")] == [pytest.approx(80)]


def test_metrics_only_measures_every_seed_and_sample(tmp_path: Path, pairs: Path, ckpt: Path) -> None:
    assert evaluate(pairs, tmp_path, f"ckpt={ckpt}", "seeds=[3,5]", "samples=2") == 0
    first = {(r.image, r.method, r.seed, r.samples): r.value for r in read_rows(tmp_path / "per_image.csv")}
    assert not np.array_equal(*(load(tmp_path / f / "ant.png") for f in ("restored_seed5", "restored_sample1_seed5")))
    assert sum(seed == 5 for _, method, seed, _ in first if method == "dit4sr (mean of 2)") == len(NAMES)

    again = ["metrics_only=true", f"out={tmp_path}", f"ckpt={tmp_path / 'none.ckpt'}"]
    assert run(compose_verb("evaluate", *again), {"metrics_only", "out"}) == 0
    second = {(r.image, r.method, r.seed, r.samples): r.value for r in read_rows(tmp_path / "per_image.csv")}
    assert second == first
    # A folder says which seed it is of only together with the others.
    with pytest.raises(UserError, match=r"restored with seeds=\[3, 5\]: leave seed and seeds out"):
        run(compose_verb("evaluate", *again, "seeds=[5]"), {"metrics_only", "out", "seeds"})
    for path in (tmp_path / "restored_seed5").iterdir():
        path.unlink()
    (tmp_path / "restored_seed5").rmdir()
    with pytest.raises(UserError, match="restored_seed5 is missing"):
        run(compose_verb("evaluate", *again), {"metrics_only", "out"})


def test_a_benchmark_without_ground_truth(tmp_path: Path, pairs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ("method=bicubic", "benchmark.hq=null", "metrics.names=[psnr,lpips,piqe]", f"metrics.weights_dir={pairs}")
    assert evaluate(pairs, tmp_path, *options) == 0
    assert {row.metric for row in read_rows(tmp_path / "per_image.csv")} == {"piqe"}
    said = capsys.readouterr().out
    assert "not applicable without a ground truth: psnr" in said
    assert f"lpips is missing: its weights are not here: put LPIPS_v0.1_alex-df73285e.pth into {pairs}" in said
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert (summary["not_applicable"], [m["metric"] for m in summary["missing"]]) == (["psnr"], ["lpips"])
    assert Image.open(tmp_path / "comparison.png").width > 500


def test_what_a_metric_cannot_take_is_said(tmp_path: Path, pairs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert evaluate(pairs, tmp_path, "method=bicubic", "metrics.names=[psnr,ms_ssim]") == 0
    assert "ms_ssim has no value for 5 images" in capsys.readouterr().out
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["methods"]["bicubic"]["ms_ssim"] == {"mean": None, "std": None, "n": 0}
    assert "176 pixels" in summary["undefined"]["ms_ssim"]["reason"]


def test_wandb_gets_means_values_and_pictures(tmp_path: Path, pairs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    assert evaluate(pairs, tmp_path, "method=bicubic", "logger=default", "pictures=2") == 0
    (folder,) = (tmp_path / "wandb").glob("offline-run-*")
    media = folder / "files" / "media"
    tables = {path.name.split("_")[0]: json.loads(path.read_text()) for path in media.rglob("*.table.json")}
    assert set(tables) == {"per", "pictures"}
    assert tables["pictures"]["columns"][:3] == ["image", "input", "bicubic"]
    assert len(tables["pictures"]["data"]) == 2
    assert len(tables["per"]["data"]) == len(NAMES)
    assert len(list(media.rglob("comparison*.png"))) == 1
    # The run's own record holds the means under their names, and the table's pictures: bicubic is drawn once.
    (path,) = folder.glob("*.wandb")
    deadline = time.monotonic() + 300  # W&B's own process writes the end of the file after the run is finished
    while b"benchmark/folder/psnr" not in (record := path.read_bytes()) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert b"benchmark/folder/psnr" in record
    assert len(set(re.findall(rb"media/images/[0-9a-f]{20}\.png", record))) == 2 * 3


@pytest.mark.slow
def test_fid_is_printed_with_its_number_of_images_and_a_warning(
    tmp_path: Path, pairs: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """By a random Inception network: the value means nothing, the way there is the real one."""
    from pyiqa.archs import inception

    torch.manual_seed(0)
    with monkeypatch.context() as patched:
        patched.setattr(inception, "load_pretrained_network", lambda *arguments: None)
        weights = inception.fid_inception_v3().state_dict()
    torch.save(weights, tmp_path / "pt_inception-2015-12-05-6726825d.pth")
    options = ("method=bicubic", "metrics.names=[psnr]", "metrics.fid=true", f"metrics.weights_dir={tmp_path}")
    assert evaluate(pairs, tmp_path / "out", *options) == 0
    (found,) = json.loads((tmp_path / "out" / "summary.json").read_text())["of_sets"]
    assert (found["metric"], found["method"], found["n"]) == ("fid", "bicubic", len(NAMES))
    assert np.isfinite(found["value"]) and found["value"] >= 0
    assert "fewer than 1000" in found["warning"]
    (line,) = [line for line in capsys.readouterr().out.splitlines() if "fid" in line and "warning" in line]
    assert "(n = 5)" in line


@pytest.mark.slow
def test_torchrun_gives_the_same_files(tmp_path: Path, pairs: Path, ckpt: Path, one_process: Path) -> None:
    options = given(pairs, tmp_path, f"ckpt={ckpt}", "seeds=[3,5]", "batch_size=2")
    started = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    done = subprocess.run(
        [*started, "-m", "dit4sr", "evaluate", *options],
        capture_output=True,
        text=True,
        timeout=800,
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert (tmp_path / "per_image.csv").read_bytes() == (one_process / "per_image.csv").read_bytes()

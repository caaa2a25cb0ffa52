"""The verb evaluate, from folders and a checkpoint to tables and pictures."""

from __future__ import annotations

import csv
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tiny_checkpoint import compose_verb, load, picture, save, write_checkpoint, write_pairs

from dit4sr.errors import UserError
from dit4sr.evaluation.metrics import psnr_y
from dit4sr.evaluation.run import run
from dit4sr.evaluation.tables import Row, read_rows
from dit4sr.images import from_hwc, to_hwc, upsample_bicubic

NAMES = ["ant", "bee", "cat"]
FOLDERS = ("restored", "restored_sample1", "restored_sample2", "restored_mean")


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("outputs")
    for number, model in enumerate(("dit4sr", "variant_b", "sd3_controlnet")):
        path = folder / "train" / model / "checkpoints" / "last.ckpt"
        write_checkpoint(path, f"model={model}", seed=number)
        (folder / "train" / model / "config.yaml").write_text(
            f"{{model: {{name: {model}}}, backbone: {{name: nano}}}}\n"
        )
    return folder


def checkpoint(checkpoints: Path, model: str = "dit4sr") -> str:
    return str(checkpoints / "train" / model / "checkpoints" / "last.ckpt")


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("benchmark")
    write_pairs(folder, NAMES)
    return folder


def evaluate(pairs: Path, out: Path, *overrides: str, explicit: tuple[str, ...] = ()) -> int:
    given = ["benchmark=folder", f"benchmark.lq={pairs / 'lq'}", f"benchmark.hq={pairs / 'hq'}", f"out={out}"]
    config = compose_verb("evaluate", *given, "sampler.steps=1", "device=cpu", *overrides)
    return run(config, {"benchmark", "out", "sampler.steps", *explicit})


def value(rows: list[Row], image: str, method: str, metric: str = "psnr") -> float:
    (found,) = (row.value for row in rows if (row.image, row.method, row.metric) == (image, method, metric))
    return found


def test_files_rows_and_values(
    tmp_path: Path, checkpoints: Path, pairs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    options = [f"ckpt={checkpoint(checkpoints)}", "samples=3", "shuffled=true", "seed=4", "batch_size=2"]
    assert evaluate(pairs, out, *options) == 0
    assert {p.relative_to(out).as_posix() for p in out.rglob("*") if p.is_file()} == {
        "config.yaml",
        "journal/process0.jsonl",
        "journal/settings.json",
        "per_image.csv",
        "per_image.parquet",
        "timing.csv",
        "summary.json",
        "table.md",
        "comparison.png",
        *(f"{folder}/{name}.png" for folder in FOLDERS for name in NAMES),
    }
    with (out / "per_image.csv").open(newline="") as file:
        raw = list(csv.DictReader(file))
    columns = ["image", "method", "metric", "value", "protocol", "channel", "border", "pyiqa", "seed"]
    assert list(raw[0]) == [*columns, "variant", "data_range", "samples", "std"]
    assert {(r["protocol"], r["channel"], r["border"], r["pyiqa"], r["seed"]) for r in raw} == {
        ("ycbcr", "Y", "0", raw[0]["pyiqa"], "4")
    }
    assert raw[0]["pyiqa"][0].isdigit()

    methods = ["bicubic", "dit4sr", "dit4sr (mean of 3)", "dit4sr (shuffled LR)"]
    rows = read_rows(out / "per_image.csv")
    assert len(rows) == len(NAMES) * len(methods) * 3
    for name in NAMES:
        lq, hq = load(pairs / "lq" / f"{name}.png"), load(pairs / "hq" / f"{name}.png")
        bicubic = to_hwc(upsample_bicubic(from_hwc(lq), 64, 64))
        assert value(rows, name, "bicubic") == pytest.approx(psnr_y(bicubic, hq))
        mean = load(out / "restored_mean" / f"{name}.png")
        assert value(rows, name, "dit4sr (mean of 3)") == pytest.approx(psnr_y(mean, hq))
        # A random network's samples differ, so that their average is the better estimate of anything.
        assert value(rows, name, "dit4sr (mean of 3)") > value(rows, name, "dit4sr")

    summary = json.loads((out / "summary.json").read_text())
    assert list(summary["methods"]) == methods
    psnrs = [value(rows, name, "dit4sr") for name in NAMES]
    assert summary["methods"]["dit4sr"]["psnr"]["mean"] == pytest.approx(np.mean(psnrs))
    assert summary["methods"]["dit4sr"]["psnr"]["std"] == pytest.approx(np.std(psnrs, ddof=1))
    assert summary["methods"]["dit4sr"]["psnr"]["n"] == 3
    assert (summary["method"]["step"], summary["method"]["sampler"]["steps"]) == (7, 1)
    stated = {"better": "higher", "protocol": "ycbcr", "channel": "Y", "border": 0, "data_range": "255"}
    assert summary["metrics"]["ssim"].items() >= stated.items()
    # The samples' own means, and how much they differ.
    variation = summary["variation"]["dit4sr"]["psnr"]
    assert (variation["over"], len(variation["means"])) == ("samples", 3)
    assert np.mean(variation["means"]) == pytest.approx(np.mean(psnrs))
    assert variation["std"] == pytest.approx(np.std(variation["means"], ddof=1))
    (ant,) = (r for r in rows if (r.image, r.method, r.metric) == ("ant", "dit4sr", "psnr"))
    assert ant.samples == 3
    assert ant.std is not None
    assert summary["settings"]["seed"] == 4

    table = (out / "table.md").read_text()
    said = capsys.readouterr().out
    assert table.splitlines()[0] in said
    assert str(out / "comparison.png") in said
    assert all(name in table for name in methods)
    assert Image.open(out / "comparison.png").width > 1000
    assert (out / "comparison.png").stat().st_size < 3_000_000


def test_one_sample_is_the_picture_that_is_written(tmp_path: Path, checkpoints: Path, pairs: Path) -> None:
    assert evaluate(pairs, tmp_path, f"ckpt={checkpoint(checkpoints)}") == 0
    rows = read_rows(tmp_path / "per_image.csv")
    assert {row.method for row in rows} == {"bicubic", "dit4sr"}
    for name in NAMES:
        restored = load(tmp_path / "restored" / f"{name}.png")
        assert value(rows, name, "dit4sr") == pytest.approx(psnr_y(restored, load(pairs / "hq" / f"{name}.png")))


def test_neither_batches_nor_other_images_nor_more_samples_change_a_picture(
    tmp_path: Path, checkpoints: Path, pairs: Path
) -> None:
    ckpt = f"ckpt={checkpoint(checkpoints)}"
    write_pairs(tmp_path / "fewer", ["bee"])
    write_pairs(tmp_path / "mixed", NAMES)
    save(tmp_path / "mixed" / "lq" / "a.png", picture(12, 20, 0))
    save(tmp_path / "mixed" / "hq" / "a.png", picture(48, 80, 0))
    assert evaluate(pairs, tmp_path / "1", ckpt, "batch_size=1") == 0
    assert evaluate(pairs, tmp_path / "3", ckpt, "batch_size=8", "samples=2") == 0
    assert evaluate(tmp_path / "fewer", tmp_path / "few", ckpt) == 0
    assert evaluate(tmp_path / "mixed", tmp_path / "mix", ckpt) == 0
    first = load(tmp_path / "1" / "restored" / "bee.png").astype(int)
    for other in ("3", "few", "mix"):
        assert np.abs(load(tmp_path / other / "restored" / "bee.png") - first).max() <= 1
    assert load(tmp_path / "mix" / "restored" / "a.png").shape == (48, 80, 3)
    assert evaluate(tmp_path / "fewer", tmp_path / "seed", ckpt, "seed=1") == 0
    assert np.abs(load(tmp_path / "seed" / "restored" / "bee.png") - first).max() > 20


def test_the_control_really_gets_another_image(tmp_path: Path, pairs: Path) -> None:
    assert evaluate(pairs, tmp_path, "method=bicubic", "shuffled=true") == 0
    rows = read_rows(tmp_path / "per_image.csv")
    for name, other in zip(NAMES, [*NAMES[1:], NAMES[0]], strict=True):
        wrong = to_hwc(upsample_bicubic(from_hwc(load(pairs / "lq" / f"{other}.png")), 64, 64))
        expected = psnr_y(wrong, load(pairs / "hq" / f"{name}.png"))
        assert value(rows, name, "bicubic (shuffled LR)") == pytest.approx(expected)
        assert expected < value(rows, name, "bicubic") - 3
    with pytest.raises(UserError, match="samples=2"):
        evaluate(pairs, tmp_path, "method=bicubic", "samples=2")


def test_a_corrupt_image_is_skipped_and_counted(
    tmp_path: Path, checkpoints: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_pairs(tmp_path / "in", NAMES)
    for path in (tmp_path / "in" / "lq" / "ant.png", tmp_path / "in" / "hq" / "cat.png"):
        # The header is whole in one of them, so that only decoding can tell.
        path.write_bytes(path.read_bytes()[: -30 if path.stem == "cat" else 5])
    assert evaluate(tmp_path / "in", tmp_path / "out", f"ckpt={checkpoint(checkpoints)}", "shuffled=true") == 1
    assert {row.image for row in read_rows(tmp_path / "out" / "per_image.csv")} == {"bee"}
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert [skipped["image"] for skipped in summary["skipped"]] == ["ant", "cat"]
    assert "2 skipped" in (tmp_path / "out" / "table.md").read_text()
    assert "skipped ant: " in capsys.readouterr().out


def test_no_readable_image_at_all(tmp_path: Path) -> None:
    write_pairs(tmp_path / "in", ["ant", "bee"])
    for path in (tmp_path / "in" / "lq").iterdir():
        path.write_bytes(path.read_bytes()[:-30])
    with pytest.raises(UserError, match="none of its images could be read"):
        evaluate(tmp_path / "in", tmp_path / "out", "method=bicubic")
    for path in (tmp_path / "in" / "lq").iterdir():
        path.write_bytes(b"")
    with pytest.raises(UserError, match="none of the 2 images in .* can be used"):
        evaluate(tmp_path / "in", tmp_path / "out", "method=bicubic")


def test_where_nothing_can_be_measured_nothing_is_restored(tmp_path: Path, checkpoints: Path, pairs: Path) -> None:
    given = f"ckpt={checkpoint(checkpoints)}", "captioner=none"
    with pytest.raises(UserError, match=r"has no ground truth for psnr, ssim, gradient_energy\. Choose .*piqe"):
        evaluate(pairs, tmp_path / "out", "benchmark.hq=null", *given)
    with pytest.raises(UserError, match="nothing can be measured: lpips: .* Choose other metrics, such as metrics=fid"):
        evaluate(pairs, tmp_path / "out", "metrics.names=[lpips]", f"metrics.weights_dir={pairs}", *given)
    assert not (tmp_path / "out").exists()


def test_the_checkpoint_s_own_model_is_taken(tmp_path: Path, checkpoints: Path, pairs: Path) -> None:
    for model in ("variant_b", "sd3_controlnet"):
        assert evaluate(pairs, tmp_path / model, f"ckpt={checkpoint(checkpoints, model)}") == 0
        summary = json.loads((tmp_path / model / "summary.json").read_text())
        assert list(summary["methods"]) == ["bicubic", model]
        assert f"name: {model}" in (tmp_path / model / "config.yaml").read_text()


def test_a_checkpoint_of_another_model_is_refused_by_its_fields(tmp_path: Path, checkpoints: Path, pairs: Path) -> None:
    given = ("model=dit4sr", f"ckpt={checkpoint(checkpoints, 'variant_b')}")
    with pytest.raises(UserError, match="lr_residual"):
        evaluate(pairs, tmp_path / "out", *given, explicit=("model",))
    with pytest.raises(UserError, match="num_layers: 12 ≠ 2"):
        evaluate(pairs, tmp_path / "out", "backbone=small", f"ckpt={checkpoint(checkpoints)}", explicit=("backbone",))
    assert not (tmp_path / "out").exists()


def test_without_a_checkpoint_the_newest_of_the_model_is_taken(tmp_path: Path, checkpoints: Path, pairs: Path) -> None:
    here = f"paths.outputs={checkpoints}"
    assert evaluate(pairs, tmp_path / "a", here, "model=variant_b", explicit=("model",)) == 0
    summary = json.loads((tmp_path / "a" / "summary.json").read_text())
    assert summary["method"]["ckpt"] == checkpoint(checkpoints, "variant_b")
    with pytest.raises(UserError, match="no checkpoint of .*variant_c"):
        evaluate(pairs, tmp_path / "b", here, "model=variant_c", explicit=("model",))


def test_the_sampler_of_another_backbone_is_the_checkpoint_s(tmp_path: Path, pairs: Path) -> None:
    path = tmp_path / "last.ckpt"
    write_checkpoint(path, "backbone.name=other", "sampler.guidance=3.5", "sampler.shift=2")
    assert evaluate(pairs, tmp_path / "out", f"ckpt={path}") == 0
    sampler = json.loads((tmp_path / "out" / "summary.json").read_text())["method"]["sampler"]
    assert (sampler["guidance"], sampler["shift"], sampler["steps"]) == (3.5, 2, 1)


@pytest.mark.parametrize(
    "option",
    [
        "samples=0",
        "samples=abc",
        "samples=1.5",
        "batch_size=0",
        "pictures=true",
        "processes=no",
        "seed=-1",
        "seeds=[0,0]",
        "seeds=[a]",
        "resume=perhaps",
        "shuffled=3",
        "metrics_only=2",
        "benchmark.upscale=four",
        "metrics.border=wide",
    ],
)
def test_settings_of_the_wrong_kind_are_refused(tmp_path: Path, pairs: Path, option: str) -> None:
    with pytest.raises(UserError, match=re.escape(option.split("=")[0])):
        evaluate(pairs, tmp_path / "out", "method=bicubic", option)
    assert not (tmp_path / "out").exists()


def test_importing_the_verbs_is_cheap() -> None:
    code = (
        "import sys; import dit4sr.evaluation.run, dit4sr.restoration.run; "
        "print([m for m in ('torch', 'pyiqa', 'cv2', 'diffusers', 'matplotlib') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=dict(os.environ))
    assert done.stdout.strip() == "[]", done.stderr

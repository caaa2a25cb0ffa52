"""Sweeps: the table over seeds, what is said of jobs that are not finished, and the page.

The page is opened from disk in a real headless Chromium.
"""

from __future__ import annotations

import csv
import json
import re
from pathlib import Path
from typing import Any

import chromium
import numpy as np
import pytest
from omegaconf import OmegaConf
from tiny_checkpoint import TINY, compose_verb, load, picture, save

from dit4sr.studies.ablation import command, table_rows, table_text
from dit4sr.studies.compare import main as compare
from dit4sr.studies.curves_figure import losses_of, mean_over, smooth, write_curves
from dit4sr.studies.differences import over_seeds_in_words
from dit4sr.studies.sweep import finish, jobs_of
from dit4sr.studies.sweep_job import EVALUATED, Record, write_record

IMAGES = ("a", "b", "c")


def write_job(sweep: Path, benchmark: Path, model: str, seed: int, quality: float) -> None:
    """A finished job as train and evaluate leave it: per-image PSNR ``quality`` + the image's number + seed / 10."""
    folder = sweep / f"{model}-seed{seed}"
    composed = compose_verb("train", *TINY, f"model={model}", "out=unused", "benchmark=folder")
    composed.benchmark.lq, composed.benchmark.hq = str(benchmark / "lq"), str(benchmark / "hq")
    config: dict[str, Any] = OmegaConf.to_container(composed, resolve=True)  # type: ignore[assignment]
    config["seed"] = seed
    for number, name in enumerate(IMAGES):
        save(folder / "evaluation" / "restored" / f"{name}.png", picture(32, 32, 10 * seed + number))
    (folder / "config.yaml").write_text(OmegaConf.to_yaml(OmegaConf.create(config)))
    with (folder / "metrics.csv").open("w") as file:
        file.write("step,train/loss\n" + "".join(f"{n},{quality / n}\n" for n in range(1, 1500)))
    values = [quality + number + seed / 10 for number in range(3)]
    statistic = {"mean": sum(values) / 3, "std": 1.0, "n": 3}
    facts = {"better": "higher", "protocol": "ycbcr", "channel": "Y", "border": 0}
    summary = {
        "benchmark": {"name": "folder", "upscale": 4.0, "images": 3},
        "method": {"name": model},
        "metrics": {"psnr": facts},
        "methods": {"bicubic": {"psnr": {"mean": 20.0, "std": 0.0, "n": 3}}, model: {"psnr": statistic}},
    }
    (folder / EVALUATED).write_text(json.dumps(summary))
    rows = [(name, "bicubic", 20.0) for name in IMAGES]
    rows += [(name, model, value) for name, value in zip(IMAGES, values, strict=True)]
    with (folder / "evaluation" / "per_image.csv").open("w") as file:
        file.write("image,method,metric,value,protocol,channel,border,pyiqa,seed\n")
        file.writelines(f"{name},{who},psnr,{value},ycbcr,Y,0,0,{seed}\n" for name, who, value in rows)
    write_record(folder, Record("finished", "0", model, seed, seconds=3.0))


@pytest.fixture
def sweep(tmp_path: Path) -> Path:
    """Two models with two seeds each, and a failed job."""
    for number, name in enumerate(IMAGES):
        save(tmp_path / "set" / "lq" / f"{name}.png", picture(8, 8, number))
        save(tmp_path / "set" / "hq" / f"{name}.png", picture(32, 32, number))
    for model, quality in (("variant_a", 22.0), ("dit4sr", 25.0)):
        for seed in (0, 1):
            write_job(tmp_path / "sweep", tmp_path / "set", model, seed, quality)
    failed = tmp_path / "sweep" / "variant_b-seed0"
    write_record(failed, Record("failed", "0", "variant_b", 0, reason="no </script> memory"))
    return tmp_path / "sweep"


def test_seeds_are_a_mean_and_a_deviation(sweep: Path) -> None:
    jobs, unfinished = jobs_of(sweep)
    assert [(job.model, job.seed) for job in jobs] == [
        ("dit4sr", 0),
        ("dit4sr", 1),
        ("variant_a", 0),
        ("variant_a", 1),
    ]
    assert [job.folder.name for job in unfinished] == ["variant_b-seed0"]
    assert "| dit4sr | 2 | **26.05** ± 0.07 |" in table_text(jobs)
    rows = {row["model"]: row for row in table_rows(jobs)}
    assert rows["variant_a"]["mean"] == pytest.approx(23.05) and rows["variant_a"]["seeds"] == 2
    assert rows["variant_a"]["seed_std"] == pytest.approx(0.1 / 2**0.5) and rows["bicubic"]["mean"] == 20.0


def test_what_the_seeds_bear_out_is_said(sweep: Path, tmp_path: Path) -> None:
    jobs, _ = jobs_of(sweep)
    # The first model is 3 dB better under each of two seeds: a difference without any spread.
    assert over_seeds_in_words(jobs) == [
        "psnr: differs from dit4sr beyond the 95 % interval over 2 paired seeds (Student's t, each comparison for "
        "itself): variant_a -3.00 [-3.00, -3.00]"
    ]
    path = sweep / "variant_a-seed1" / EVALUATED
    summary = json.loads(path.read_text())
    summary["methods"]["variant_a"]["psnr"]["mean"] += 1
    path.write_text(json.dumps(summary))
    # Differences of -3 and -2: a mean of -2.5 and a half-width of 12.7 · 0.5.
    assert over_seeds_in_words(jobs_of(sweep)[0])[0].endswith("itself): none; not told apart: variant_a")
    assert over_seeds_in_words([job for job in jobs if job.seed == 0]) == []


def test_curves_are_compared_step_by_step(sweep: Path, tmp_path: Path) -> None:
    jobs, _ = jobs_of(sweep)
    losses = losses_of(jobs)
    assert list(losses) == ["dit4sr", "variant_a"] and list(losses["dit4sr"]) == [0, 1]
    steps, values = mean_over([{1: 2.0, 2: 4.0, 3: 9.0}, {2: 6.0, 3: 1.0, 4: 0.0}])
    assert steps.tolist() == [2, 3] and values.tolist() == [5.0, 5.0]
    line = np.linspace(0, 1, 50)
    assert np.allclose(smooth(line), line)  # narrower at the ends, so a line stays one
    assert smooth(np.eye(1, 51, 25)[0]).max() == pytest.approx(1 / 5)
    assert write_curves(tmp_path / "curves.png", jobs) and load(tmp_path / "curves.png").shape[1] > 1000
    for job in jobs:
        (job.folder / "metrics.csv").unlink()
    assert not write_curves(tmp_path / "none.png", jobs) and not (tmp_path / "none.png").exists()


def test_a_failed_job_is_listed_with_its_log_and_the_others_are_compared(
    sweep: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert finish(sweep) == 1
    said = capsys.readouterr()
    assert (
        f"not finished: variant_b-seed0 failed: no </script> memory (log: {sweep}/variant_b-seed0/log.txt)" in said.err
    )
    for name in ("table.md", "per_job.csv", "curves.png", "comparison.png", "report.html"):
        assert (sweep / name).stat().st_size > 100
    with (sweep / "table.csv").open(newline="") as file:
        assert {row["model"] for row in csv.DictReader(file)} == {"bicubic", "dit4sr", "variant_a"}


def test_jobs_of_two_benchmarks_are_not_put_into_one_table(sweep: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = sweep / "dit4sr-seed0" / EVALUATED
    path.write_text(path.read_text().replace('"folder"', '"other"'))
    assert finish(sweep) == 1 and "evaluated on folder, other" in capsys.readouterr().err


def test_jobs_with_other_metrics_and_a_summary_that_is_cut_off(sweep: Path) -> None:
    for name in ("dit4sr-seed1", "variant_a-seed1"):
        path = sweep / name / EVALUATED
        summary = json.loads(path.read_text())
        summary["metrics"]["lpips"] = {"better": "lower", "protocol": "rgb", "channel": "RGB", "border": 0}
        for values in summary["methods"].values():
            values["lpips"] = {"mean": 0.3, "std": 0.1, "n": 3}
        path.write_text(json.dumps(summary))
    assert finish(sweep) == 1
    rows = {(row["model"], row["metric"]): row for row in table_rows(jobs_of(sweep)[0])}
    assert rows["dit4sr", "lpips"]["seeds"] == 1 and rows["dit4sr", "lpips"]["seed"] == "1"
    assert rows["bicubic", "lpips"]["protocol"] == "rgb" and rows["variant_a", "psnr"]["seeds"] == 2
    assert [c["name"] for c in content(sweep / "report.html")["table"]["columns"]] == ["psnr", "lpips"]
    (sweep / "variant_a-seed0" / EVALUATED).write_text('{"benchmark"')
    jobs, unfinished = jobs_of(sweep)
    assert len(jobs) == 3 and "summary.json is cut off" in "".join(map(str, unfinished))


def test_the_short_settings_are_those_of_train() -> None:
    assert command(["seeds=0,1", "steps=5", "models=dit4sr", "backbone=small", "launcher=joblib", "jobs=2"]) == [
        "--multirun",
        "experiment=ablation",
        "seed=0,1",
        "training.steps=5",
        "model=dit4sr",
        "backbone=small",
        "hydra/launcher=joblib",
        "hydra.launcher.n_jobs=2",
    ]


def test_two_runs_are_compared(sweep: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert compare([str(sweep / "dit4sr-seed0"), str(sweep / "variant_a-seed1")]) == 0
    said = capsys.readouterr().out
    assert "model.lr_attention | joint" in said and "separate" in said and "model.lr_residual" not in said
    assert compare([str(sweep / "dit4sr-seed0"), str(sweep / "none")]) == 2
    assert compare([str(sweep)]) == 2


def test_nothing_is_compared_without_jobs(tmp_path: Path) -> None:
    assert jobs_of(tmp_path) == ([], []) and finish(tmp_path) == 0


def content(page: Path) -> dict[str, Any]:
    """What a page shows, as data."""
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', page.read_text(), re.DOTALL)
    assert found is not None
    return json.loads(found.group(1))


def test_the_page_says_what_the_files_say(sweep: Path) -> None:
    finish(sweep)
    page = sweep / "report.html"
    assert not re.search(r'(?:src|href)="?https?:', page.read_text())  # one file, no connection
    shown = content(page)
    assert shown["models"] == ["dit4sr", "variant_a"] and "</script> memory" in shown["unfinished"][0]
    cell = shown["table"]["rows"][2]["cells"]["psnr"]
    assert cell["mean"] == pytest.approx(23.05) and cell["difference"] == pytest.approx(-3)
    assert cell["interval"] == pytest.approx(4.302653 / 3**0.5, rel=1e-5)  # t(0.975; 2) · 1 / √3
    assert [line["seed"] for line in shown["curves"]["train/loss"]] == [0, 1, 0, 1]
    assert shown["curves"]["train/loss"][0]["points"][-1] == [1499, pytest.approx(25 / 1499)]
    assert {row["name"] for row in shown["differences"]} == {"model.name", "model.lr_attention"}
    assert [list(p["methods"]) for p in shown["pictures"]] == [["LR", "bicubic", "dit4sr", "variant_a", "HR"]] * 3
    assert all(row["total"] > row["trainable"] > 0 or row["total"] == row["trainable"] for row in shown["complexity"])


def test_a_page_of_large_noisy_pictures_stays_small(sweep: Path) -> None:
    """Nine pictures of six images that no lossless format can shrink."""
    import numpy as np

    from dit4sr.studies import report

    rng = np.random.default_rng(0)
    noise = {str(n): rng.integers(0, 256, (700, 600, 3), dtype=np.uint8) for n in range(9)}
    small = report.cropped(noise)
    assert {image.shape for image in small.values()} == {(512, 512, 3)}
    jobs, _ = jobs_of(sweep)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("dit4sr.studies.ablation.pictures", lambda jobs, count: [(str(n), noise) for n in range(count)])
        entries = report.encoded_pictures(jobs)
    assert entries and len(entries[0]["methods"]) == 9
    assert sum(len(text) for entry in entries for text in entry["methods"].values()) < 7e6


def test_the_page_works_in_a_browser(sweep: Path) -> None:
    chromium.need("playwright")
    finish(sweep)
    with chromium.launched() as browser:
        page = browser.new_page(viewport={"width": 1280, "height": 900})
        page.set_default_timeout(chromium.PATIENCE)
        errors: list[str] = []
        requested: list[str] = []
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.on("request", lambda request: requested.append(request.url))
        page.goto((sweep / "report.html").as_uri())
        page.wait_for_selector("#tiles img")
        assert page.inner_text("h1") == "Ablation on folder, nano"
        assert "no </script> memory" in page.inner_text("#unfinished")
        assert "26.05 ± 0.07" in page.inner_text("#results") and "Δ −3.00" in page.inner_text("#results")
        assert page.locator("#plot .curve").count() == 4
        page.click("#legend span[title]:has-text('variant_a')")
        assert page.locator("#plot .curve").count() == 2

        # The handle uncovers the left picture; a small picture that is clicked comes to the right.
        page.locator("#viewer").scroll_into_view_if_needed()
        box = page.locator("#viewer").bounding_box()
        assert box is not None
        middle = box["y"] + box["height"] / 2
        page.mouse.move(box["x"] + box["width"] / 2, middle)
        page.mouse.down()
        page.mouse.move(box["x"] + box["width"] / 4, middle, steps=4)
        page.mouse.up()
        assert abs(int(page.get_attribute("#bar", "aria-valuenow")) - 25) <= 1
        page.locator(".tile", has_text="variant_a").dispatch_event("click")
        assert page.inner_text("#tagright") == "variant_a" and page.inner_text("#tagleft") == "bicubic"
        widths = "[...document.querySelectorAll('.layer img, .tile img')].map(i => i.naturalWidth)"
        page.wait_for_function(f"() => {widths}.every(width => width > 0)")  # also of the one that was just put there
        assert set(page.evaluate(widths)) == {32}

        # One zoom for all: every small picture shows the same part.
        scale = "[...document.querySelectorAll('.tile img')].map(i => i.style.transform)"
        before = page.evaluate(scale)
        page.mouse.move(box["x"] + 40, box["y"] + 40)
        page.mouse.wheel(0, -600)
        page.wait_for_function("() => document.getElementById('zoom').textContent != 'zoom 1.0×'")
        after = page.evaluate(scale)
        assert len(set(before)) == len(set(after)) == 1 and before[0] != after[0]
        page.set_viewport_size({"width": 420, "height": 800})  # a telephone
        page.wait_for_function("() => document.documentElement.scrollWidth <= 420")
        assert not errors and all(url.startswith(("file:", "data:")) for url in requested)

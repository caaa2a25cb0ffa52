"""The verb evaluate on folders: other methods' images, under their names, and benchmarks as they are published."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from omegaconf import OmegaConf
from tiny_checkpoint import compose_verb, load, picture, save, write_pairs

from dit4sr.errors import UserError
from dit4sr.evaluation.run import run
from dit4sr.evaluation.tables import Row, read_rows

NAMES = ["ant", "bee", "cat"]


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("benchmark")
    write_pairs(folder, NAMES)
    return folder


def evaluate(pairs: Path, out: Path, *overrides: str) -> int:
    given = ["benchmark=folder", f"benchmark.lq={pairs / 'lq'}", f"benchmark.hq={pairs / 'hq'}", f"out={out}"]
    return run(compose_verb("evaluate", *given, "device=cpu", *overrides), {"benchmark", "out"})


def value(rows: list[Row], image: str, method: str, metric: str = "psnr") -> float:
    (found,) = (row.value for row in rows if (row.image, row.method, row.metric) == (image, method, metric))
    return found


def test_somebody_else_s_images(tmp_path: Path, pairs: Path) -> None:
    theirs = tmp_path / "theirs"
    theirs.mkdir()
    for name in NAMES[:2]:
        save(theirs / f"{name}.png", load(pairs / "hq" / f"{name}.png") // 2)
    given = ("method=folder", f"method.path={theirs}", "method.label=half")
    with pytest.raises(UserError, match=r"no image for cat of"):
        evaluate(pairs, tmp_path / "out", *given)
    save(theirs / "cat.png", picture(64, 60, 0))
    with pytest.raises(UserError, match=r"cat\.png has 60×64 pixels"):
        evaluate(pairs, tmp_path / "out", *given)
    save(theirs / "cat.png", load(pairs / "hq" / "cat.png"))
    assert evaluate(pairs, tmp_path / "out", *given) == 0
    rows = read_rows(tmp_path / "out" / "per_image.csv")
    assert value(rows, "cat", "half") == pytest.approx(80)
    assert value(rows, "ant", "half", "gradient_energy") == pytest.approx(0.25, abs=0.02)
    assert np.array_equal(load(tmp_path / "out" / "restored" / "ant.png"), load(theirs / "ant.png"))
    with pytest.raises(UserError, match="shuffled=true"):
        evaluate(pairs, tmp_path / "out", *given, "shuffled=true")
    # Nothing of a folder is restored in any case.
    assert evaluate(pairs, tmp_path / "again", *given, "metrics_only=true") == 0
    assert read_rows(tmp_path / "again" / "per_image.csv") == rows


def test_somebody_else_s_names(tmp_path: Path, pairs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in NAMES:
        save(tmp_path / "theirs" / "images" / f"{name}_out.png", load(pairs / "hq" / f"{name}.png") // 2)
    given = ("method=folder", f"method.path={tmp_path / 'theirs'}")
    assert evaluate(pairs, tmp_path / "out", *given) == 0
    assert "matched by one change of name for all (ant is ant_out)" in capsys.readouterr().out
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert (summary["method"]["name"], summary["method"]["names"]) == ("theirs", "ant is ant_out")
    assert {row.image for row in read_rows(tmp_path / "out" / "per_image.csv")} == set(NAMES)
    with pytest.raises(UserError, match=r"bicubic is the name of the baseline in every table: give method\.label="):
        evaluate(pairs, tmp_path / "other", *given, "method.label=bicubic")


def test_a_folder_whose_names_are_wrong_is_refused(tmp_path: Path, pairs: Path) -> None:
    for name, other in zip(NAMES, [*NAMES[1:], NAMES[0]], strict=True):
        save(tmp_path / "theirs" / f"{name}.png", load(pairs / "hq" / f"{other}.png"))
    given = ("method=folder", f"method.path={tmp_path / 'theirs'}")
    with pytest.raises(UserError, match="3 images show something else than the LR images of their names: ant"):
        evaluate(pairs, tmp_path / "out", *given)
    assert evaluate(pairs, tmp_path / "out", *given, "benchmark.allow_incomplete=true") == 0


LAYOUTS = {
    "drealsr": ("DrealSRVal_crop128/test_LR", "DrealSRVal_crop128/test_HR", 93, 128),
    "realsr": ("RealSRVal_crop128/test_LR", "RealSRVal_crop128/test_HR", 100, 128),
    "div2k_val": ("DIV2K_V2_val/lq", "DIV2K_V2_val/gt", 3000, 128),
    "reallr200": ("RealLR200", None, 200, None),
    "reallq250": ("RealLQ250", None, 250, 256),
}


@pytest.mark.parametrize("benchmark", list(LAYOUTS))
def test_the_published_layouts(tmp_path: Path, benchmark: str) -> None:
    from dit4sr.evaluation.run import find_benchmark

    lq, hq, count, side = LAYOUTS[benchmark]
    here = (f"benchmark={benchmark}", f"paths.benchmarks={tmp_path}", "out=unused")
    config = OmegaConf.to_container(compose_verb("evaluate", *here), resolve=True)
    with pytest.raises(UserError, match=f"get {benchmark[:5]}|get RealL|get DIV2K|get DrealSR|get RealSR") as error:
        find_benchmark(config, set())
    assert str(tmp_path / lq) in str(error.value)
    small = 3 if count > 200 else count
    for folder, size in ((lq, side or 40), (hq, 4 * (side or 40))):
        for i in range(small) if folder else ():
            save(tmp_path / folder / f"Canon_{i:03}.png", np.zeros((size, size, 3), np.uint8))
    if small < count:
        with pytest.raises(UserError, match=f"has {count} images, but .* has 3"):
            find_benchmark(config, set())
        config["benchmark"]["count"] = 3
    found = find_benchmark(config, set())
    assert (len(found.images), found.upscale, found.has_ground_truth) == (small, 4, hq is not None)
    assert found.images[0].target == (4 * (side or 40), 4 * (side or 40))
    if side is not None:
        save(tmp_path / lq / "Canon_001.png", np.zeros((16, 16, 3), np.uint8))
        with pytest.raises(UserError, match=r"Canon_001\.png"):
            find_benchmark(config, set())
    (tmp_path / lq / "Canon_000.png").unlink()
    with pytest.raises(UserError, match=r"Canon_000\.png without LR" if hq else "images, but"):
        find_benchmark(config, set())

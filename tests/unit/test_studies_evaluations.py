"""Studies that read evaluations: fidelity and qualitative figures."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from studies_folders import noisy, write_benchmark, write_evaluation
from tiny_checkpoint import load, save

from dit4sr.evaluation.fidelity import psnr_y
from dit4sr.studies import fidelity, qualitative
from dit4sr.studies.regions import Region, most_disputed


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    write_benchmark(tmp_path / "pairs")
    return tmp_path / "pairs"


def read(path: Path) -> list[dict[str, str]]:
    with path.open() as file:
        return list(csv.DictReader(file))


def test_measured_stands_beside_reported(tmp_path: Path, pairs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_evaluation(tmp_path / "one", pairs, amount=5)
    write_evaluation(tmp_path / "two", pairs, amount=20)
    out = tmp_path / "out"
    assert fidelity.main([f"evaluations=good={tmp_path}/one,bad={tmp_path}/two", f"out={out}"]) == 0
    rows = read(out / "table.csv")
    measured = {
        r["method"]: float(r["value"]) for r in rows if r["source"] == "measured here" and r["metric"] == "psnr"
    }
    assert set(measured) == {"bicubic", "good", "bad"}
    expected = np.mean(
        [psnr_y(load(tmp_path / "one" / "restored" / f"{n}.png"), load(pairs / "hq" / f"{n}.png")) for n in "abc"]
    )
    assert measured["good"] == pytest.approx(expected) and measured["bad"] < measured["bicubic"] < measured["good"]
    reported = [r for r in rows if r["source"].startswith("reported: DiT4SR")]
    assert len(reported) == 22 and {r["images"] for r in reported} == {""}
    table = (out / "table.md").read_text()
    assert table.index("Measured here") < table.index("Reported") and "23.378" in table
    # Ranked apart: the best measured and the best reported value are both bold.
    assert table.count("**") == 8
    assert Image.open(out / "comparison_realsr.png").width > 400


def test_other_protocols_are_not_set_beside_the_published_ones(
    tmp_path: Path, pairs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_evaluation(tmp_path / "one", pairs, protocol="yiq")
    assert fidelity.main([f"evaluations={tmp_path}/one", f"out={tmp_path}/out"]) == 2
    assert "metrics.protocol=ycbcr" in capsys.readouterr().err


def test_nothing_is_reported_for_another_factor(tmp_path: Path, pairs: Path) -> None:
    write_evaluation(tmp_path / "one", pairs)
    summary = json.loads((tmp_path / "one" / "summary.json").read_text())
    summary["benchmark"]["upscale"] = 2.0
    (tmp_path / "one" / "summary.json").write_text(json.dumps(summary))
    assert fidelity.main([f"evaluations={tmp_path}/one", f"out={tmp_path}/out"]) == 0
    assert {row["source"] for row in read(tmp_path / "out" / "table.csv")} == {"measured here"}


def test_what_the_paper_does_not_report(tmp_path: Path, pairs: Path) -> None:
    write_evaluation(tmp_path / "one", pairs, benchmark="mine")
    assert fidelity.main([f"evaluations={tmp_path}/one", f"out={tmp_path}/out"]) == 0
    assert "The paper reports nothing on this benchmark." in (tmp_path / "out" / "table.md").read_text()


def test_the_newest_evaluations_are_found(
    tmp_path: Path, pairs: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("DIT4SR_OUTPUTS", str(tmp_path / "outputs"))
    assert fidelity.main([]) == 2
    assert "run python evaluate.py" in capsys.readouterr().err
    write_evaluation(tmp_path / "outputs" / "evaluate" / "x", pairs)
    assert fidelity.main([]) == 0
    assert (tmp_path / "outputs" / "fidelity" / "table.md").is_file()


@pytest.mark.parametrize("study", [fidelity, qualitative])
def test_broken_evaluations_are_one_line(
    study: object, tmp_path: Path, pairs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "empty").mkdir()
    write_evaluation(tmp_path / "cut", pairs)
    (tmp_path / "cut" / "summary.json").write_text('{"benchmark": {"na')
    write_evaluation(tmp_path / "moved", pairs)
    (pairs / "hq").rename(pairs / "elsewhere")
    for name, said in (
        ("absent", "is no folder"),
        ("empty", "has no summary.json"),
        ("cut", "again"),
        ("moved", "hq="),
    ):
        assert study.main([f"evaluations={tmp_path}/{name}", f"out={tmp_path}/out"]) == 2  # type: ignore[attr-defined]
        error = capsys.readouterr().err
        assert said in error and error.count("\n") == 1 and "Traceback" not in error
    found = study.main(  # type: ignore[attr-defined]
        [f"evaluations={tmp_path}/moved", f"hq={pairs}/elsewhere", f"out={tmp_path}/out"]
    )
    assert found == 0


def test_figure_shows_where_methods_disagree(tmp_path: Path, pairs: Path) -> None:
    write_evaluation(tmp_path / "one", pairs, amount=1)
    other = tmp_path / "other"
    for name in "abc":
        image = load(tmp_path / "one" / "restored" / f"{name}.png")
        if name == "b":  # here the other method sees something else
            image[30:42, 40:56] = 255 - image[30:42, 40:56]
        save(other / f"{name}.png", image)
    out = tmp_path / "out"
    arguments = [f"evaluations={tmp_path}/one", f"folders=theirs={other}", "size=16", "count=1", "bicubic=false"]
    assert qualitative.main([*arguments, f"out={out}", "dpi=100"]) == 0
    (row,) = read(out / "regions.csv")
    assert (row["image"], row["x"], row["y"], row["width"], row["height"]) == ("b", "40", "30", "16", "12")
    assert (out / "realsr.pdf").read_bytes().startswith(b"%PDF")
    png = Image.open(out / "realsr.png")
    assert png.width == 716 and png.info["dpi"][0] == pytest.approx(100, abs=0.1)
    # The same command gives the same files.
    before = (out / "realsr.pdf").read_bytes()
    assert qualitative.main([*arguments, f"out={out}", "dpi=100"]) == 0
    assert (out / "realsr.pdf").read_bytes() == before


def test_given_images_and_regions(tmp_path: Path, pairs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_evaluation(tmp_path / "one", pairs)
    common = [f"evaluations={tmp_path}/one", f"out={tmp_path}/out", "dpi=60", "size=16"]
    assert qualitative.main([*common, "images=c,a", "regions=a:4:8:20:10"]) == 0
    rows = read(tmp_path / "out" / "regions.csv")
    assert [r["image"] for r in rows] == ["c", "a"]
    assert (rows[1]["x"], rows[1]["height"], rows[1]["disagreement"]) == ("4", "10", "")
    capsys.readouterr()
    for wrong in ("regions=a:60:0:20:10", "regions=a:1:2", "images=z", "folders=x=/nowhere", "dpi=5", "size=0"):
        assert qualitative.main([*common, wrong]) == 2
        assert capsys.readouterr().err.count("\n") == 1


def test_images_one_folder_down_as_archives_have_them(tmp_path: Path, pairs: Path) -> None:
    """The verb takes a benchmark, and another method's images, so; studies find them there too."""
    write_evaluation(tmp_path / "one", pairs)
    for side in ("lq", "hq"):
        (pairs / side).rename(pairs / "inner")
        (pairs / side).mkdir()
        (pairs / "inner").rename(pairs / side / "images")
    for name in "abc":
        save(tmp_path / "theirs" / "sample00" / f"{name}_out.png", load(tmp_path / "one" / "restored" / f"{name}.png"))
    common = [f"evaluations={tmp_path}/one", f"out={tmp_path}/out"]
    assert qualitative.main([*common, f"folders=theirs={tmp_path}/theirs", "dpi=60", "size=16"]) == 0
    assert fidelity.main(common) == 0 and (tmp_path / "out" / "comparison_realsr.png").is_file()


def test_no_ground_truth(tmp_path: Path, pairs: Path) -> None:
    write_evaluation(tmp_path / "one", pairs, truth=False)
    assert qualitative.main([f"evaluations={tmp_path}/one", f"out={tmp_path}/out", "dpi=60", "size=16"]) == 0
    assert fidelity.main([f"evaluations={tmp_path}/one", f"out={tmp_path}/f"]) == 0
    assert not (tmp_path / "f" / "comparison_realsr.png").exists()


def test_most_disputed_region() -> None:
    flat = np.full((48, 64, 3), 100, np.uint8)
    marked = flat.copy()
    marked[20:28, 30:42] = 180
    region, amount = most_disputed([flat, marked], 12, 8)
    assert region == Region(30, 20, 12, 8) and amount > 30
    assert most_disputed([flat, flat], 64, 48)[0] == Region(0, 0, 64, 48)
    assert most_disputed([noisy(flat, 3, 0), flat], 63, 47)[1] > 0

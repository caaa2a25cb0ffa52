"""Many evaluations in one table: what is one row, what may not share a column, and what is measured or reported."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
from report_folders import IMAGES, OURS, QUICK, checkpoint, entry, merged, values, wave, write_run

from dit4sr.errors import UserError
from dit4sr.evaluation.published import BENCHMARKS, METRICS, SOURCES, read_published, reported, reported_seconds
from dit4sr.evaluation.reports.formats import markdown
from dit4sr.evaluation.reports.layout import main_grid, sections
from dit4sr.evaluation.reports.merging import merge
from dit4sr.evaluation.reports.runs import find_runs

# Measured and reported


def test_reported_rows_take_no_part_in_the_ranking(here: Path) -> None:
    worst = {"psnr": 5.0, "musiq": 1.0}
    write_run(here / "a", "dit4sr", worst, bicubic={"psnr": 4.0, "musiq": 0.5}, facts=checkpoint())
    (table,) = merged("a")
    assert {q.method for q in table.quoted} >= {"DiT4SR", "SeeSR", "SD3-ControlNet"}
    grid = main_grid(table)
    for line in grid.lines:
        marked = [item.place for item in line.items]
        assert any(marked) == (line.items[0].text == "dit4sr"), line
        assert line.items[1].text == line.kind
    # As printed in the paper, whatever the digits of ours.
    texts = {line.items[0].text: [i.text for i in line.items] for line in grid.lines}
    assert "23.378" in texts["DiT4SR"] and "68.073" in texts["DiT4SR"]


def test_reported_numbers_stand_only_below_their_own_protocol(here: Path) -> None:
    for protocol in ("rgb", "ycbcr"):
        write_run(here / protocol, "dit4sr", {"psnr": 20.0}, protocol=protocol, facts=checkpoint())
    (rgb,) = merged("rgb")
    assert rgb.quoted == []
    (both,) = merged("rgb", "ycbcr")
    quoted = {m.protocol for q in both.quoted for m in q.values}
    assert quoted == {"ycbcr"}


@pytest.mark.parametrize("changes", [{"benchmark": "demo"}, {"benchmark": "div2k_val"}])
def test_nothing_is_reported_where_the_paper_has_nothing(here: Path, changes: dict[str, str]) -> None:
    write_run(here / "a", "dit4sr", OURS, facts=checkpoint(), **changes)  # type: ignore[arg-type]
    assert merged("a")[0].quoted == []


def test_published_files_name_their_source() -> None:
    assert SOURCES["fidelity"].endswith("supplement, table 1") and SOURCES["complexity"].endswith("supplement, table 2")
    for table in SOURCES:
        assert read_published(table)
    numbers = {(r.method, r.stated): r.text for r in reported("drealsr", 4.0)}
    assert numbers["SeeSR", METRICS["psnr"]] == "28.074" and numbers["DiT4SR", METRICS["musiq"]] == "64.950"
    assert reported("drealsr", 2.0) == []
    assert len({r.method for r in reported("realsr", 4.0)}) == 11
    assert {len([r for r in reported(name, 4.0)]) for name in ("drealsr", "realsr")} == {11 * 7}
    assert reported_seconds("realsr")["DiT4SR"] == "5.61" and reported_seconds("reallq250") == {}
    for name in BENCHMARKS:
        assert all(float(r.text) > 0 for r in reported(name, 4.0))


# What may not be mixed


def test_protocols_have_columns_of_their_own(here: Path) -> None:
    write_run(here / "a", "x", {"psnr": 20.0}, protocol="rgb")
    write_run(here / "b", "y", {"psnr": 22.0}, protocol="ycbcr")
    (table,) = merged("a", "b")
    header = main_grid(table).header
    assert sum(h.startswith("PSNR") for h in header) == 2
    assert any("rgb" in h for h in header) and any("ycbcr" in h for h in header)
    shown = {(e.label, m.protocol) for e in table.entries for m in e.cells}
    assert shown == {("x", "rgb"), ("bicubic", "rgb"), ("y", "ycbcr"), ("bicubic", "ycbcr")}
    # x and y have no column in common, so neither is compared with the other.
    assert not entry(table, "y").compared


def test_versions_and_variants_have_columns_of_their_own(here: Path) -> None:
    for name, old, new in (("a", "", ""), ("b", "0.1.16", "0.1.13"), ("c", "KonIQ-10k", "SPAQ")):
        write_run(here / name, name, {"musiq": 60.0})
        path = here / name / "per_image.csv"
        path.write_text(path.read_text().replace(old, new) if old else path.read_text())
    (table,) = merged("a", "b", "c")
    assert len(table.measures) == 3
    assert sorted(len(e.cells) for e in table.entries) == [1, 1, 1, 3]


def test_benchmarks_have_tables_of_their_own(here: Path) -> None:
    write_run(here / "a", "x", OURS, benchmark="realsr")
    write_run(here / "b", "x", OURS, benchmark="drealsr")
    write_run(here / "c", "x", OURS, benchmark="folder")
    write_run(here / "d", "x", OURS, benchmark="folder")
    text = json.loads((here / "d" / "summary.json").read_text())
    text["benchmark"]["lq"] = "elsewhere"
    (here / "d" / "summary.json").write_text(json.dumps(text))
    assert [t.name for t in merged("a", "b", "c", "d")] == ["realsr", "drealsr", "folder (LR)", "folder (elsewhere)"]


def test_benchmarks_of_one_name_with_other_images_are_refused(here: Path) -> None:
    write_run(here / "a", "x", OURS)
    write_run(here / "b", "y", OURS, bicubic={"psnr": 27.1})
    with pytest.raises(UserError, match="bicubic has psnr .* their images differ"):
        merged("a", "b")


def test_means_are_over_the_common_images(here: Path) -> None:
    write_run(here / "a", "x", OURS)
    write_run(here / "b", "y", OURS, phase=1.0, images=IMAGES[3:9])
    (table,) = merged("a", "b")
    wanted = np.mean([wave("psnr", OURS["psnr"], i, 0.0) for i in range(4, 10)])
    assert values(table, "psnr")["x"] == pytest.approx(wanted)
    assert {c.n for e in table.entries for c in e.cells.values()} == {6}
    assert any("over the 6 images" in note and "x has 12" in note for note in table.notes)


def test_runs_without_a_common_image_are_refused(here: Path) -> None:
    write_run(here / "a", "x", OURS, images=IMAGES[:4])
    write_run(here / "b", "y", OURS, images=IMAGES[4:])
    with pytest.raises(UserError, match="no image with a value of psnr in common"):
        merged("a", "b")


def test_undefined_values_are_left_out_for_all(here: Path) -> None:
    def sometimes(metric: str, mean: float, image: int, phase: float) -> float:
        return math.nan if image == 2 and phase else wave(metric, mean, image, phase)

    write_run(here / "a", "x", {"psnr": 20.0}, phase=1.0, value=sometimes)
    write_run(here / "b", "y", {"psnr": 21.0})
    (table,) = merged("a", "b")
    assert {c.n for e in table.entries for c in e.cells.values()} == {11}


# Rows


def test_runs_that_differ_in_their_seed_are_one_row(here: Path) -> None:
    for seed in range(3):
        write_run(here / f"s{seed}", "dit4sr", OURS, phase=float(seed), facts=checkpoint(seed))
    (table,) = merged("s0", "s1", "s2")
    assert [e.label for e in table.entries] == ["dit4sr", "bicubic"]
    found = entry(table, "dit4sr")
    assert found.seeds == 3 and entry(table, "bicubic").seeds is None
    assert all(c.spread.over == "seeds" and c.spread.count == 3 for c in found.cells.values())


def test_other_settings_are_other_rows(here: Path) -> None:
    write_run(here / "a", "dit4sr", OURS, facts=checkpoint(step=1000))
    write_run(here / "b", "dit4sr", OURS, facts=checkpoint(1, step=2000), phase=1.0)
    (table,) = merged("a", "b")
    assert [e.label for e in table.entries] == ["dit4sr (step 1000)", "dit4sr (step 2000)", "bicubic"]
    # The same seed and settings: two evaluations of something that the summary does not tell apart.
    write_run(here / "c", "dit4sr", OURS, facts=checkpoint(step=1000))
    (table,) = merged("a", "c")
    assert [e.label for e in table.entries] == ["dit4sr (a)", "dit4sr (c)", "bicubic"]


def test_labels(here: Path) -> None:
    write_run(here / "a=1", "dit4sr", OURS, facts=checkpoint())
    write_run(here / "b", "dit4sr", OURS, facts=checkpoint(1), phase=1.0)
    assert [e.label for e in merged("Ours=a=1", "b")[0].entries] == ["Ours", "dit4sr", "bicubic"]
    assert [e.label for e in merged("a=1")[0].entries] == ["dit4sr", "bicubic"]
    both = merge(find_runs({"Ours": ["a=1", "b"]}), QUICK)[0]
    assert [(e.label, e.seeds) for e in both.entries] == [("Ours", 2), ("bicubic", None)]
    with pytest.raises(UserError, match="cannot be labelled bicubic"):
        merged("bicubic=b")


def test_controls_are_not_ranked(here: Path) -> None:
    write_run(here / "a", "dit4sr", OURS, facts=checkpoint())
    path = here / "a" / "per_image.csv"
    lines = path.read_text().splitlines()
    better = [line.replace(",dit4sr,", ",dit4sr (shuffled LR),").replace(",23.", ",93.") for line in lines[1:]]
    path.write_text("\n".join([*lines, *(line for line in better if "shuffled" in line)]) + "\n")
    (table,) = merged("Ours=a")
    assert [e.label for e in table.entries] == ["Ours", "Ours (shuffled LR)", "bicubic"]
    assert entry(table, "Ours (shuffled LR)").places == {}
    assert entry(table, "Ours (shuffled LR)").seconds is None and entry(table, "Ours").seconds == 5.25


def test_deviation_over_samples_is_the_summary_s(here: Path) -> None:
    over = {"psnr": {"over": "samples", "means": [23.5, 23.7], "mean": 23.6, "std": 0.1414, "n": 2}}
    metrics = {"psnr": {"protocol": "ycbcr", "border": 0}}
    write_run(here / "a", "dit4sr", OURS, facts=checkpoint(), variation={"dit4sr": over}, metrics=metrics)
    (table,) = merged("a")
    spreads = {m.metric: c.spread for m, c in entry(table, "dit4sr").cells.items()}
    assert (spreads["psnr"].std, spreads["psnr"].over, spreads["psnr"].count) == (0.1414, "samples", 2)
    assert spreads["ssim"] is None


def test_seconds_of_reading_images_are_not_shown(here: Path) -> None:
    write_run(here / "a", "folder_of_images", OURS, facts={"path": "x"})
    write_run(here / "b", "dit4sr", OURS, phase=1.0, facts=checkpoint(), settings={"metrics_only": True})
    (table,) = merged("a", "b")
    assert "s/image" not in main_grid(table).header


def test_fid_has_its_number_of_images(here: Path) -> None:
    fid = {"metric": "fid", "method": "dit4sr", "value": 41.5, "n": 12, "warning": "FID over few images"}
    write_run(here / "a", "dit4sr", OURS, facts=checkpoint(), of_sets=[fid])
    (table,) = merged("a")
    assert values(table, "fid") == {"dit4sr": 41.5}
    text = markdown(sections([table], QUICK))
    assert "41.50" in text and "FID over few images (n = 12)" in text

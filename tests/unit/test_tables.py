"""Statistics over images, and tables with the best marked."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest

from dit4sr.evaluation.tables import (
    Column,
    Row,
    markdown_table,
    ranking,
    read_rows,
    statistic,
    summarise,
    write_parquet,
    write_rows,
)


def row(image: str, method: str, metric: str, value: float) -> Row:
    return Row(image, method, metric, value, "ycbcr", "Y", 0, "0.1.16", 3)


def test_rows_survive_the_file_at_full_precision(tmp_path: Path) -> None:
    first_row = replace(row("a, b", "ours (mean of 8)", "psnr", 1 / 3), variant="x, y", samples=8, std=0.1)
    rows = [first_row, row("c", "ours", "gradient_energy", math.nan)]
    write_rows(tmp_path / "rows.csv", rows)
    first = (tmp_path / "rows.csv").read_text().splitlines()[0]
    assert first == "image,method,metric,value,protocol,channel,border,pyiqa,seed,variant,data_range,samples,std"
    back = read_rows(tmp_path / "rows.csv")
    assert back[0] == rows[0]
    assert math.isnan(back[1].value)
    assert back[1].std is None


def test_parquet_has_the_same_rows(tmp_path: Path) -> None:
    rows = [row("a", "x", "psnr", 1 / 3), replace(row("b", "x", "psnr", math.nan), std=0.5, samples=2)]
    write_rows(tmp_path / "rows.csv", rows)
    write_parquet(tmp_path / "rows.parquet", rows)
    frame, text = pd.read_parquet(tmp_path / "rows.parquet"), pd.read_csv(tmp_path / "rows.csv")
    assert list(frame.columns) == list(text.columns)
    assert frame["value"].tolist()[0] == 1 / 3
    assert frame["value"].isna().tolist() == [False, True]
    assert frame["std"].isna().tolist() == [True, False]


def test_files_of_earlier_versions_are_read(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_text("image,method,metric,value,protocol,channel,border,pyiqa,seed\na,x,psnr,3,ycbcr,Y,0,0.1.16,3\n")
    assert read_rows(path) == [row("a", "x", "psnr", 3)]


def test_an_image_s_value_is_the_mean_over_its_seeds() -> None:
    rows = [replace(row("a", "x", "psnr", v), seed=seed) for seed, v in enumerate((20, 22, 24))]
    summary = summarise([*rows, row("b", "x", "psnr", 30)])
    assert (summary["x"]["psnr"].mean, summary["x"]["psnr"].n) == (26, 2)


def test_statistics() -> None:
    s = statistic([1.0, 2.0, 6.0])
    assert (s.mean, s.n) == (3.0, 3)
    assert s.std == pytest.approx(math.sqrt((4 + 1 + 9) / 2))
    with_nan = statistic([1.0, math.nan])
    assert (with_nan.mean, with_nan.n) == (1.0, 1)
    assert math.isnan(with_nan.std)
    assert math.isnan(statistic([]).mean)


def test_summary_by_method_and_metric() -> None:
    rows = [
        row("a", "x", "psnr", 20),
        row("b", "x", "psnr", 22),
        row("a", "y", "psnr", 30),
        row("a", "x", "ssim", 1),
    ]
    summary = summarise(rows)
    assert list(summary) == ["x", "y"]
    assert (summary["x"]["psnr"].mean, summary["x"]["psnr"].n) == (21, 2)
    assert summary["y"]["psnr"].mean == 30


def test_ranking_knows_the_direction() -> None:
    values = {"a": 0.5, "b": 1.2, "c": 0.9, "d": math.nan}
    assert ranking(values, "higher") == ["b", "c", "a"]
    assert ranking(values, "lower") == ["a", "c", "b"]
    assert ranking(values, "one") == ["c", "b", "a"]


COLUMNS = [Column("psnr", "higher", 2), Column("lpips", "lower", 3), Column("energy", "one", 2)]


def test_best_and_second_best_are_marked() -> None:
    values = {
        "bicubic": {"psnr": 24.0, "lpips": 0.5, "energy": 0.08},
        "ours": {"psnr": 25.126, "lpips": 0.2, "energy": 0.9},
        "theirs": {"psnr": 23.0, "lpips": 0.3},
        "control": {"psnr": 99.0, "lpips": 0.0, "energy": 1.0},
    }
    assert markdown_table(values, COLUMNS, unranked={"control"}).splitlines() == [
        "| method  |    psnr ↑ |   lpips ↓ | energy →1 |",
        "|---------|----------:|----------:|----------:|",
        "| bicubic |   *24.00* |     0.500 |      0.08 |",
        "| ours    | **25.13** | **0.200** |  **0.90** |",
        "| theirs  |     23.00 |   *0.300* |         – |",
        "| control |     99.00 |     0.000 |      1.00 |",
    ]


def test_what_prints_alike_is_marked_alike() -> None:
    values = {"a": {"psnr": 25.001}, "b": {"psnr": 25.0}, "c": {"psnr": 24.0}}
    lines = markdown_table(values, COLUMNS[:1]).splitlines()
    assert [line.split("|")[2].strip() for line in lines[2:]] == ["**25.00**", "**25.00**", "*24.00*"]


def test_a_single_row_is_not_the_best() -> None:
    assert "*" not in markdown_table({"bicubic": {"psnr": 24.0}}, COLUMNS[:1])

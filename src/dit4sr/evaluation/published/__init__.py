"""Published numbers, as data: what a paper reports, never what was measured here.

Each CSV file names in its first line where the table is printed; its values are as printed there.
"""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).parent


def _source(path: Path) -> str:
    with path.open(encoding="utf-8") as file:
        return file.readline().lstrip("# ").strip()


SOURCES = {path.stem: _source(path) for path in sorted(HERE.glob("*.csv"))}
"""Table → where it is printed."""

BENCHMARKS = {"drealsr": "DrealSR", "realsr": "RealSR", "reallr200": "RealLR200", "reallq250": "RealLQ250"}
"""Name of a benchmark's config → its name in the published tables."""

UPSCALE = 4.0
"""Of all published numbers."""

TIMED = ("drealsr", "realsr")
"""Benchmarks of the published seconds: 128×128 → 512×512."""

UNSAID_LIQE = "the paper does not say which of LIQE's two models it used"


@dataclass(frozen=True)
class Stated:
    """A published metric in this project's terms.

    Attributes:
        metrics: names in the catalogue; several where the paper leaves open which.
        protocol, border: of PSNR and SSIM.
        note: what is uncertain.
    """

    metrics: tuple[str, ...]
    protocol: str = "default"
    border: int = 0
    note: str = ""


METRICS = {
    "psnr": Stated(("psnr",), "ycbcr"),
    "ssim": Stated(("ssim",), "ycbcr"),
    "lpips": Stated(("lpips",)),
    "musiq": Stated(("musiq",)),
    "maniqa": Stated(("maniqa-pipal",)),
    "clipiqa": Stated(("clipiqa+_vitL14_512",)),
    "liqe": Stated(("liqe", "liqe_mix"), note=UNSAID_LIQE),
}
"""Name in the published tables → which metric it is."""


@dataclass(frozen=True)
class Reported:
    """A published number.

    Attributes:
        method: as the paper calls it.
        stated: which metric.
        text: the number as printed.
        source: where.
    """

    method: str
    stated: Stated
    text: str
    source: str


def read_published(table: str) -> list[dict[str, str]]:
    """The rows of a published table, values as they are printed.

    Args:
        table: a name of :data:`SOURCES`.
    """
    with (HERE / f"{table}.csv").open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(line for line in file if not line.startswith("#")))


def published_fidelity(benchmark: str) -> dict[str, dict[str, float]]:
    """Method → metric (psnr, ssim) → value on a benchmark; empty where none is published.

    Args:
        benchmark: name of a config, such as ``realsr``.
    """
    values: dict[str, dict[str, float]] = {}
    for row in read_published("fidelity"):
        if row["dataset"] == BENCHMARKS.get(benchmark):
            for method in list(row)[2:]:
                values.setdefault(method, {})[row["metric"]] = float(row[method])
    return values


def reported(benchmark: str, upscale: float) -> list[Reported]:
    """All published numbers of a benchmark, by method; empty where none is published.

    Args:
        benchmark: name of a config, such as ``realsr``.
        upscale: factor from LR to HR; only ×4 is published.
    """
    name = BENCHMARKS.get(benchmark)
    if name is None or upscale != UPSCALE:
        return []
    found = [
        Reported(method, METRICS[row["metric"]], row[method], SOURCES[table])
        for table in ("perceptual", "fidelity")
        for row in read_published(table)
        if row["dataset"] == name
        for method in list(row)[2:]
    ]
    if benchmark == "reallq250":
        found += [
            Reported(_variant(row["model"]), METRICS[metric], row[metric], SOURCES["ablation"])
            for row in read_published("ablation")
            if row["model"] != "dit4sr"
            for metric in ("musiq", "maniqa")
        ]
    order = list(dict.fromkeys(r.method for r in found))
    return sorted(found, key=lambda r: order.index(r.method))


def reported_seconds(benchmark: str) -> dict[str, str]:
    """Method → seconds an image on an A100, as printed; empty for benchmarks of other sizes."""
    if benchmark not in TIMED:
        return {}
    return {row["method"]: row["seconds_a100_512"] for row in read_published("complexity")}


def _variant(name: str) -> str:
    """``variant_a`` as the paper writes it."""
    return f"DiT4SR, variant {name.removeprefix('variant_').upper()}"

"""What the benchmarks make of a GPU's limited time: order, rows that are left out and say so, targets."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))

import measuring  # noqa: E402
import sampling  # noqa: E402
import targets  # noqa: E402
from variants import GPU_PARTS, on_the_gpu  # noqa: E402


class Said(measuring.Report):
    """A report that is kept and not printed."""

    def say(self, text: str = "") -> None:
        self.lines.append(text)

    @property
    def text(self) -> str:
        return "\n".join(self.lines)


def measured(seconds: float, ratio: float = 1.0) -> measuring.Measured:
    return measuring.Measured(seconds, seconds, seconds, ratio, (seconds,))


def test_the_targets_rows_come_first_and_every_row_has_a_table() -> None:
    rows = on_the_gpu()
    first = [(part.model, part.batch) for part in GPU_PARTS[:4]]
    assert first == [("dit4sr", 1), ("dit4sr", 8), ("sd3_controlnet", 1), ("sd3_controlnet", 8)]
    assert GPU_PARTS[0].labels is not None and GPU_PARTS[0].labels[:4] == ("plain", "exact", "cuda_graphs", "fp8")
    assert all(part.labels is not None and part.labels[0] == "plain" for part in GPU_PARTS)
    assert {label for part in GPU_PARTS for label in part.labels or ()} == set(rows)
    shares = [part.share for part in GPU_PARTS]
    assert shares == sorted(shares) and shares[-1] == 1


def test_a_row_is_begun_where_it_is_expected_to_end_in_time() -> None:
    rows, now = on_the_gpu(), time.monotonic()
    budget = sampling.Budget(now, 1.0)
    assert budget.until(0.5) == now + 30
    assert budget.allows(rows["exact"], now + 20) and not budget.allows(rows["compiled"], now + 20)
    budget.took(rows["exact"], 300.0)
    budget.took(rows["compiled"], 8.0)
    assert budget.allows(rows["compiled"], now + 20), "as long as the longest so far"
    budget.took(rows["cuda_graphs"], 25.0)
    budget.took(rows["compiled"], 8.0)
    assert not budget.allows(rows["compiled"], now + 20)


def test_rows_and_tables_without_time_are_printed_as_such(monkeypatch: pytest.MonkeyPatch) -> None:
    """The GPU's way through a table, on the CPU with its clock run out after the first row."""
    part = GPU_PARTS[0]
    arguments: Any = SimpleNamespace(
        device="cpu", ckpt=None, steps=1, guidance=1.0, peak=1e12, rounds=1, minutes=0.0, profile=False
    )
    rows = {label: variant for label, variant in on_the_gpu().items() if label in {"plain", "exact", "cuda_graphs"}}
    nano = sampling.Part("dit4sr", "nano", 1, tuple(rows), part.share)
    report = Said("sampling", "cpu")
    monkeypatch.setattr(sampling.Budget, "allows", lambda self, variant, until: False)
    sampling.measure(report, nano, rows, arguments, sampling.Budget(0.0, 0.0))
    assert "| exact | left out: no time | –" in report.text and "| cuda_graphs | left out: no time | –" in report.text
    monkeypatch.undo()
    report = Said("sampling", "cpu")
    found = sampling.measure(report, nano, rows, arguments, sampling.Budget(time.monotonic(), 1.0))
    assert set(found) == {"plain", "exact"}
    assert "| cuda_graphs | UserError: acceleration.cuda_graphs needs a GPU" in report.text


def test_rounds_end_where_the_time_does() -> None:
    calls: list[float] = []
    measuring.paired({"a": lambda: calls.append(time.sleep(0.02) or 0.0)}, rounds=50, warm_up=0, until=time.monotonic())
    assert len(calls) == 1, "one at least"
    calls.clear()
    until = time.monotonic() + 0.2
    measuring.paired({"a": lambda: calls.append(time.sleep(0.02) or 0.0)}, rounds=50, warm_up=0, until=until)
    assert 1 < len(calls) <= 11


def test_targets_are_met_missed_or_not_measured() -> None:
    report = Said("sampling", "cpu")
    results = {
        ("dit4sr", 1): {"plain": measured(1.2), "cuda_graphs": measured(0.7, 1.71), "fp8": measured(0.55, 2.2)},
        ("dit4sr", 8): {"plain": measured(8.0), "cuda_graphs": measured(6.4)},
    }
    targets.targets_table(report, results, {"fp8"})
    assert "| dit4sr, batch 1, without approximation | ≤ 0.75 s an image | 0.7 (cuda_graphs) | met |" in report.text
    assert "| dit4sr, batch 1, without approximation | ≥ 1.5 × plain | 1.71 (cuda_graphs) | met |" in report.text
    assert "| ≥ 1.3 images/s | 1.25 (cuda_graphs) | missed |" in report.text
    assert "| dit4sr, batch 1, fp8 | ≤ 0.5 s an image | 0.55 (fp8) | missed |" in report.text
    assert "| sd3_controlnet, batch 1, without approximation | ≥ 1.5 × plain | not measured | – |" in report.text
    assert targets.misses_its_time("dit4sr", 1, measured(0.8))
    assert not targets.misses_its_time("dit4sr", 1, measured(0.7))
    assert not targets.misses_its_time("dit4sr", 8, measured(9.0))


def test_live_bytes_are_those_at_once_and_attention_is_counted_fused() -> None:
    import predicted
    import torch

    def chain() -> None:
        x = torch.empty(1000, device="meta")
        for _ in range(10):
            x = x + 1  # the old one goes

    assert predicted.peak_of(chain) == 2 * 4000
    weight = torch.empty(500, 500, device="meta")
    assert predicted.peak_of(lambda: (weight.mT, weight.view(-1))) == 0, (
        "views and what was there before are nothing new"
    )
    heads = [torch.empty(1, 2, 4096, 8, device="meta") for _ in range(3)]
    assert predicted.peak_of(lambda: torch.nn.functional.scaled_dot_product_attention(*heads)) == heads[0].nbytes


def test_the_full_size_fits_the_memory_it_is_meant_for() -> None:
    import predicted

    report = Said("memory", "cpu")
    peaks = predicted.predict(report, "dit4sr")
    whole = peaks["whole pipeline, `text_encoder_device=offload`"]
    assert peaks["embeddings given (`prompt=cached`, or prompt_embeds)"] < 8 and whole < 12
    assert peaks["with the text encoders beside the network"] > 16 > 10 > whole
    assert all(peaks[name] < 10 for name in peaks if "acceleration=" in name)
    assert (
        "| T5-XXL | 9.52 |" in report.text
        and "| dit4sr, bfloat16, 40 guided steps of 1 image of 512×512 | 5.64 |" in report.text
    )


def test_training_steps_without_time_are_left_out_and_compiled_ones_first() -> None:
    import training

    steps = {"checkpointing": lambda: None, "plain": lambda: None, "compiled blocks": lambda: None}
    ready, missing = training.warmed(steps, "cpu", time.monotonic() + training.COMPILING / 2)
    assert list(ready) == ["checkpointing", "plain"] and missing == {"compiled blocks": "left out: no time"}
    ready, missing = training.warmed(steps, "cpu", time.monotonic() - 1)
    assert list(ready) == ["checkpointing"] and len(missing) == 2, "one at least"
    ready, missing = training.warmed(steps, "cpu", float("inf"))
    assert list(ready) == list(steps) and not missing

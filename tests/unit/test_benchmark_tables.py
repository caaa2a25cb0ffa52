"""What the benchmarks make of a GPU's limited time: order, rows that are left out and say so, targets."""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from fake_clock import Clock
from torch.autograd import DeviceType
from torch.autograd.profiler_util import FunctionEvent, FunctionEventAvg

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))

import measuring  # noqa: E402
import sampling  # noqa: E402
import targets  # noqa: E402
import tracing  # noqa: E402
import training  # noqa: E402
from variants import GPU_PARTS, Part, approximations, on_the_gpu  # noqa: E402


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
    assert first == [("dit4sr", 1), ("sd3_controlnet", 1), ("dit4sr", 8), ("sd3_controlnet", 8)]
    assert GPU_PARTS[0].labels is not None and GPU_PARTS[0].labels[:4] == ("plain", "exact", "cuda_graphs", "fp8")
    assert all(part.labels is not None and part.labels[0] == "plain" for part in GPU_PARTS)
    assert {label for part in GPU_PARTS for label in part.labels or ()} == set(rows)
    shares = [part.share for part in GPU_PARTS]
    assert shares == sorted(shares) and shares[-1] == 1


def of_a_gpu(**changes: Any) -> Any:
    """What sampling.py's command line gives on a GPU."""
    given: dict[str, Any] = dict.fromkeys(("models", "backbones", "batches", "variants", "ckpt", "steps"))
    given |= {"device": "cuda", "approximate": False, "guidance": 8.0}
    return SimpleNamespace(**given | changes)


def parts_of(**changes: Any) -> list[Part]:
    arguments = of_a_gpu(**changes)
    return sampling.parts_of(arguments, sampling.variants_of(arguments))


def test_approximations_have_a_table_of_their_own_after_the_targets() -> None:
    assert parts_of() == list(GPU_PARTS)
    *before, last = parts_of(approximate=True)
    assert [part.labels for part in before] == [part.labels for part in GPU_PARTS]
    assert last.labels == ("plain", *approximations("cuda")) and last.model == "dit4sr"
    shares = [part.share for part in (*before, last)]
    assert shares == sorted(shares) and shares[-2] < shares[-1] == 1


def test_rows_that_are_asked_for_are_in_a_table_and_tables_without_them_are_not() -> None:
    (one,) = parts_of(variants=["exact, int8"])
    assert one.labels == ("plain", "exact, int8") and one.share == 1
    found = parts_of(variants=["fp8", "step"])
    rows = [("plain", "fp8"), ("plain", "step")]
    assert [part.labels for part in found] == rows and [part.share for part in found] == [0.5, 1]
    (alone,) = parts_of(variants=["fp8"])
    assert alone.share == 1, "what the others would take is its"
    assert [part.labels for part in parts_of(variants=["plain"])] == [("plain",)] * len(GPU_PARTS)
    chosen = parts_of(batches=[2], approximate=True)
    assert [(part.model, part.batch) for part in chosen] == [("dit4sr", 2), ("sd3_controlnet", 2)]
    assert all(set(part.labels or ()) == {*on_the_gpu(), *approximations("cuda")} for part in chosen)


def test_only_what_the_targets_are_about_is_held_against_them() -> None:
    whole = {"plain": measured(1.2), "cuda_graphs": measured(0.1, 12.0)}
    medium, nano = Part("dit4sr", "sd35_medium", 1, None, 0.5), Part("dit4sr", "nano", 1, None, 1.0)

    def said(results: dict[Part, dict[str, measuring.Measured]], **changes: Any) -> str:
        report = Said("sampling", "cpu")
        targets.sum_up(report, results, of_a_gpu(**changes), set())
        return report.text

    assert "| 0.1 (cuda_graphs) | met |" in said({medium: whole}) and "against plain" not in said({medium: whole})
    both = said({medium: {"plain": measured(1.2), "exact": measured(0.9, 1.3)}, nano: whole})
    assert "| 0.9 (exact) | missed |" in both and "| dit4sr on nano, batch 1 |" in both and "met" not in both
    for changes in ({"steps": 2}, {"guidance": 1.0}, {"ckpt": "a"}, {"device": "cpu"}):
        text = said({medium: whole}, **changes)
        assert "Targets" not in text and "| dit4sr on sd35_medium, batch 1 |" in text, changes
    assert "Targets" in said({medium: whole}, steps=40)
    batches = {medium: whole, Part("dit4sr", "sd35_medium", 8, None, 1.0): {"exact": measured(1, 1.5)}}
    assert "| `exact` | not measured | 1.50 |" in said(batches, steps=2), "a column each"


def test_weights_are_of_the_type_that_the_table_says() -> None:
    rows, gpu, cpu = on_the_gpu(), torch.device("cuda"), torch.device("cpu")
    assert {rows[n].dtype_on(gpu) for n in ("plain", "cuda_graphs", "fp8")} == {torch.bfloat16}
    assert rows["plain, float32"].dtype_on(gpu) == torch.float32 and rows["plain"].dtype_on(cpu) is None


def test_a_device_that_is_not_there_is_refused_in_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    for name, words in (("gpu", "choose cpu, cuda or"), ("cpu:0", "choose cpu"), ("cuda:99", "GPU")):
        with pytest.raises(SystemExit) as ended:
            measuring.choose_device(argparse.ArgumentParser(), name)
        assert ended.value.code == 2 and words in capsys.readouterr().err.splitlines()[-1]
    measuring.choose_device(argparse.ArgumentParser(), "cpu")


def event(name: str, start: float, end: float, gpu: bool = False, label: bool = False) -> FunctionEvent:
    """As torch.profiler gives them, in microseconds."""
    device = DeviceType.CUDA if gpu else DeviceType.CPU
    return FunctionEvent(0, name, 1, start, end, device_type=device, use_device="cuda", is_user_annotation=label)


def a_gpu_profile() -> list[FunctionEvent]:
    """A step: a product, and an item() that waits for it; the GPU ends later than the host, which then waits again."""
    product = event("aten::mm", 10, 20)
    product.append_kernel("gemm", 0, 300)
    return [
        event(tracing.STEP, 0, 400, label=True),
        product,
        event("aten::item", 30, 390),
        event("aten::_local_scalar_dense", 31, 389),
        event("cudaMemcpyAsync", 32, 34),
        event("cudaStreamSynchronize", 35, 388),
        event("Optimizer.step#AdamW.step", 391, 399, label=True),
        event("cudaDeviceSynchronize", 450, 900),
        event(tracing.STEP, 40, 800, gpu=True, label=True),
        event("Optimizer.step#AdamW.step", 500, 600, gpu=True, label=True),
        event("gemm", 40, 340, gpu=True),
        event("gemm", 600, 700, gpu=True),
        event("Memcpy DtoH (Device -> Pageable)", 345, 445, gpu=True),
    ]


def test_a_gpu_s_time_counts_once_in_a_trace() -> None:
    averages: dict[Any, FunctionEventAvg] = {}
    for one in a_gpu_profile():
        key = one.key, str(one.device_type), one.is_user_annotation
        averages.setdefault(key, FunctionEventAvg()).add(one)
    assert sum(a.self_device_time_total for a in averages.values()) == 300 + 760 + 100 + 400 + 100, "as torch has it"
    found = tracing.costs(averages.values(), on_gpu=True)
    assert found == [("gemm", 400, 2), ("Memcpy DtoH (Device -> Pageable)", 100, 1)]
    shown = tracing.cost_table(averages.values(), on_gpu=True, steps=1, rows=10)
    assert "| gemm | 0.40 | 80 % | 2 |" in shown and "aten" not in shown and tracing.STEP not in shown


def test_a_wait_of_the_host_counts_once_and_within_the_step_alone() -> None:
    assert tracing.waits_in_steps(a_gpu_profile()) == {"cudaStreamSynchronize": 1}


def test_a_profile_of_the_cpu_is_its_operators() -> None:
    x = torch.rand(64, 64)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profiler:
        for _ in range(tracing.STEPS):
            with torch.profiler.record_function(tracing.STEP):
                (x @ x).sum().item()
    averages = profiler.key_averages()
    calls = {cost.name: cost.calls for cost in tracing.costs(averages, on_gpu=False)}
    assert calls["aten::mm"] == calls["aten::item"] == calls[tracing.STEP] == tracing.STEPS
    whole = sum(cost.microseconds for cost in tracing.costs(averages, on_gpu=False))
    assert whole == pytest.approx(sum(a.self_cpu_time_total for a in averages)) and whole > 0
    assert tracing.costs(averages, on_gpu=True) == [] and not tracing.waits_in_steps(profiler.events())
    shown = tracing.cost_table(averages, on_gpu=False, steps=tracing.STEPS, rows=50)
    assert "| aten::mm |" in shown and tracing.STEP not in shown


def test_a_row_is_begun_where_it_is_expected_to_end_in_time() -> None:
    rows, now = on_the_gpu(), time.monotonic()
    budget = sampling.Budget(now, 1.0)
    assert budget.until(0.5) == now + 30
    assert budget.allows(rows["exact"], now + 20) and not budget.allows(rows["compiled"], now + 20)
    budget.took(rows["exact"], 2.0)
    budget.took(rows["compiled"], 8.0)
    budget.took(rows["step"], 300.0)  # which no other row is like
    assert budget.allows(rows["compiled"], now + 20), "as long as the longest so far"
    budget.took(rows["cuda_graphs"], 25.0)
    budget.took(rows["compiled"], 8.0)
    assert not budget.allows(rows["compiled"], now + 20)
    assert budget.allows(rows["compiled"], now + 30) and not budget.allows(rows["step"], now + 100)
    assert not budget.allows(rows["plain, float32"], now + 20)
    budget.took(rows["plain"], 25.0)
    assert not budget.allows(rows["exact"], now + 40), "a timed call beside the first"


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


def test_rounds_end_where_the_time_does(monkeypatch: pytest.MonkeyPatch) -> None:
    """By a clock that the action alone moves on: a busy machine takes longer for a call than the call does."""
    clock = Clock(100.0)
    monkeypatch.setattr(measuring, "time", clock)

    def calls(until: float) -> int:
        began = clock.now

        def action() -> None:
            clock.now += 0.25

        found = measuring.paired({"a": action}, rounds=50, warm_up=0, until=began + until)
        assert set(found["a"].values) == {0.25}
        return len(found["a"].values)

    assert calls(until=0.0) == 1, "one at least"
    assert calls(until=2.5) == 10 and calls(until=2.6) == 10
    assert calls(until=100.0) == 50


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
    given = peaks["embeddings given (`prompt=cached`, or prompt_embeds)"]
    whole = {
        dtype: peaks[f"text encoders in {dtype}, whole pipeline, `text_encoder_device=offload`"]
        for dtype in ("bfloat16", "float16")
    }
    assert given < 8 and whole["bfloat16"] < 10 < whole["float16"] < 12
    assert peaks["text encoders in bfloat16, beside the network"] > 16
    for kind, text in (("int8", "int8_weights"), ("nf4", "nf4")):
        quantised = f"whole pipeline, `prompt.quantise={text} acceleration={kind}`, `text_encoder_device=offload`"
        assert peaks[quantised] < 10
        # The whole network and the autoencoder are on the GPU before it is quantised.
        assert 5.64 + 0.33 < peaks[f"embeddings given, `acceleration={kind}`"] < given
    assert "| T5-XXL, prompt.quantise=int8_weights | 4.90 |" in report.text
    assert "| T5-XXL | 9.52 |" in report.text and "| T5-XXL, float16, its wo float32 | 11.54 |" in report.text
    assert "| dit4sr, bfloat16, 40 guided steps of 1 image of 512×512 | 5.64 |" in report.text


def test_training_steps_without_time_are_left_out_and_compiled_ones_first() -> None:
    steps = {"checkpointing": lambda: None, "plain": lambda: None, "compiled blocks": lambda: None}
    ready, missing = training.warmed(steps, "cpu", time.monotonic() + training.COMPILING / 2)
    assert list(ready) == ["checkpointing", "plain"] and missing == {"compiled blocks": "left out: no time"}
    ready, missing = training.warmed(steps, "cpu", time.monotonic() - 1)
    assert list(ready) == ["checkpointing"] and len(missing) == 2, "one at least"
    ready, missing = training.warmed(steps, "cpu", float("inf"))
    assert list(ready) == list(steps) and not missing


def test_what_fails_on_a_gpu_after_the_tables_is_a_line() -> None:
    report = Said("training", "cpu")
    with pytest.raises(ValueError, match="broken"), training.said(report, "The trace"):
        raise ValueError("broken")
    report.device = "cuda"
    with training.said(report, "The trace"):
        raise ValueError("broken")
    assert report.lines[-1] == "The trace ended early: ValueError: broken\n"

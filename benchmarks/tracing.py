"""What torch.profiler says of a run: the costliest operators or kernels, and on a GPU where the host waited for it.

A profile of a GPU holds the same time several times: as a kernel, as the operator that launched it, and as the GPU's
shadow of every labelled block around it. Kernels, copies and fills alone are counted here.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

from measuring import Report, table
from torch.autograd import DeviceType

STEP = "training step"
STEPS = 3

WAITS = ("cudaStreamSynchronize", "cudaDeviceSynchronize", "cudaEventSynchronize", "cudaMemcpy")
"""Calls in which the host waits for a GPU; not the operators that make them, so that each wait counts once."""


class Cost(NamedTuple):
    """An operator of the CPU, or a GPU's kernel: its own microseconds of all calls."""

    name: str
    microseconds: float
    calls: int


def costs(averages: Iterable[Any], on_gpu: bool) -> list[Cost]:
    """What took the time, longest first; their sum is the time that the device worked, each piece counted once.

    Args:
        averages: ``key_averages()`` of a profile.
        on_gpu: of the GPU's kernels, copies and fills; else of the CPU's operators, labelled blocks among them.
    """
    if on_gpu:
        own = [
            Cost(a.key, a.self_device_time_total, a.count)
            for a in averages
            if a.device_type == DeviceType.CUDA and a.key != STEP and not getattr(a, "is_user_annotation", False)
        ]
    else:
        own = [Cost(a.key, a.self_cpu_time_total, a.count) for a in averages if a.device_type == DeviceType.CPU]
    return sorted(own, key=lambda cost: -cost.microseconds)


def cost_table(averages: Iterable[Any], on_gpu: bool, steps: int, rows: int) -> str:
    """The costliest of a profile of so many steps."""
    own = costs(averages, on_gpu)
    whole = sum(cost.microseconds for cost in own) or 1
    shown = [cost for cost in own if cost.name != STEP][:rows]
    cells = [
        [c.name[:100], f"{c.microseconds / 1000 / steps:.2f}", f"{100 * c.microseconds / whole:.0f} %", c.calls / steps]
        for c in shown
    ]
    head = ["kernel" if on_gpu else "operator", "ms a step", "share", "calls a step"]
    return table([[*row[:-1], f"{row[-1]:.4g}"] for row in cells], head)


def waits_in_steps(events: Iterable[Any]) -> Counter[str]:
    """How often the host waited for the GPU in each way, within the blocks labelled :data:`STEP`.

    Args:
        events: ``events()`` of a profile. Only the CPU's count: the GPU's shadow of a step ends later than the step.
    """
    of_host = [event for event in events if event.device_type == DeviceType.CPU]
    inside = [(e.time_range.start, e.time_range.end) for e in of_host if e.name == STEP]
    return Counter(e.name for e in of_host if e.name in WAITS and any(a <= e.time_range.start < b for a, b in inside))


def trace(report: Report, step: Callable[[], object], path: Path) -> None:
    """Write a chrome trace of three steps, and say what cost most in them and, on a GPU, where the host waited."""
    from torch.profiler import ProfilerActivity, profile, record_function

    on_gpu = report.device.startswith("cuda")
    with profile(activities=[ProfilerActivity.CPU] + ([ProfilerActivity.CUDA] if on_gpu else [])) as profiler:
        for _ in range(STEPS):
            with record_function(STEP):
                step()
    path.parent.mkdir(parents=True, exist_ok=True)
    profiler.export_chrome_trace(str(path))
    counted = ""
    if on_gpu:
        waits = waits_in_steps(profiler.events())
        names = ", ".join(f"{name} {count}×" for name, count in waits.items())
        counted = f"; the host waits for the GPU {waits.total()} times in them{f' ({names})' if names else ''}"
    report.say(f"Trace of three steps: {path.name}{counted}.\n")
    report.say(cost_table(profiler.key_averages(), on_gpu, STEPS, rows=10) + "\n")

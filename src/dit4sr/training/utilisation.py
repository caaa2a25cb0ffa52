"""How much of a device's arithmetic a training uses: model FLOPs utilisation (MFU; arXiv 2204.02311, appendix B)."""

from __future__ import annotations

import re
import time
from functools import cache
from typing import Any

import torch

from dit4sr.errors import UserError
from dit4sr.helper_processes import cores

PEAKS = {
    "H200": 790e12,  # measured: bfloat16 matmul of 8192×8192 by torch; the data sheet says 989e12
    "H100": 989e12,
    "A100": 312e12,
    "L40S": 362e12,
    "A10": 125e12,
    "RTX 4090": 165e12,
    "RTX 3090": 71e12,
}
"""Dense 16-bit FLOP/s by a part of the device's name: NVIDIA's data sheets (which also state twice as much, with
sparsity) but where a measured matrix product is known, which no network exceeds."""


def peak_flops(device: torch.device, precision: str, asked: Any = "auto", processes: int = 1) -> float | None:
    """FLOP/s of a device that utilisation refers to.

    The CPU of a machine is one device, whatever the number of processes that train on it: its peak is that of the
    threads that they have together, at most one a core. With one process it is thus that of its own threads
    (OMP_NUM_THREADS), and idle cores are no part of it.

    Args:
        device: of training.
        precision: ``trainer.precision``.
        asked: ``trainer.peak_flops``: a number; None for no utilisation; ``auto`` for :data:`PEAKS`, or a matrix
            product timed here where the device is not among them, or computes in 32 bits.
        processes: of the training on this machine.

    Raises:
        UserError: ``asked`` is something else.
    """
    check_peak(asked)
    if asked is None:
        return None
    if asked != "auto":
        return float(asked)
    half = "16" in precision
    if device.type == "cuda" and half:
        name = torch.cuda.get_device_name(device)
        known = next((peak for part, peak in PEAKS.items() if re.search(rf"\b{part}\b", name)), None)
        if known is not None:
            return known
    if device.type == "cuda":
        return measured_peak(device, torch.bfloat16 if half else torch.float32)
    own = torch.get_num_threads()
    return measured_peak(device, torch.float32, threads=max(own, min(own * processes, cores())))


def check_peak(asked: Any) -> None:
    """Refuse a ``trainer.peak_flops`` that is neither FLOP/s, nor ``auto``, nor None.

    Raises:
        UserError: it is not.
    """
    if asked is None or asked == "auto":
        return
    try:
        peak = float(asked)
    except (TypeError, ValueError):
        peak = 0.0
    if isinstance(asked, bool) or not 0 < peak < float("inf"):
        raise UserError(f"trainer.peak_flops={asked}: give FLOP/s of a device such as 790e12, auto, or null")


@cache
def measured_peak(
    device: torch.device, dtype: torch.dtype, side: int | None = None, calls: int = 30, threads: int | None = None
) -> float:
    """FLOP/s of a square matrix product, the best of a few calls.

    Args:
        device: where.
        dtype: of the matrices.
        side: rows; None is 8192 on a GPU and 768 on the CPU (a few hundredths of a second).
        calls: timed ones, after one to warm up: enough that other work of the machine misses some.
        threads: on the CPU; None for as many as this process computes with.
    """
    own = torch.get_num_threads()
    try:
        torch.set_num_threads(threads or own)
        return _time_product(device, dtype, side, calls)
    finally:
        torch.set_num_threads(own)


def _time_product(device: torch.device, dtype: torch.dtype, side: int | None, calls: int) -> float:
    side = side or (8192 if device.type == "cuda" else 768)
    generator = torch.Generator(device).manual_seed(0)  # the run's own random numbers stay what they were
    a, b = (torch.randn(side, side, device=device, generator=generator).to(dtype) for _ in range(2))
    best = float("inf")
    for call in range(calls + 1):
        began = time.perf_counter()
        torch.mm(a, b)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        if call:
            best = min(best, time.perf_counter() - began)
    return 2 * side**3 / best

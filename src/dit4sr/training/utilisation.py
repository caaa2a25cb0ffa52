"""How much of a device's arithmetic a training uses: model FLOPs utilisation (MFU; arXiv 2204.02311, appendix B)."""

from __future__ import annotations

import re
import time
from functools import cache
from typing import Any

import torch

from dit4sr.errors import UserError

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


def peak_flops(device: torch.device, precision: str, asked: Any = "auto") -> float | None:
    """FLOP/s of a device that utilisation refers to.

    Args:
        device: of training.
        precision: ``trainer.precision``.
        asked: ``trainer.peak_flops``: a number; None for no utilisation; ``auto`` for :data:`PEAKS`, or a matrix
            product timed here where the device is not among them, or computes in 32 bits.

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
    return measured_peak(device, torch.bfloat16 if half and device.type == "cuda" else torch.float32)


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
def measured_peak(device: torch.device, dtype: torch.dtype, side: int | None = None, calls: int = 5) -> float:
    """FLOP/s of a square matrix product, the best of a few calls.

    Args:
        device: where.
        dtype: of the matrices.
        side: rows; None is 8192 on a GPU and 768 on the CPU (a few hundredths of a second).
        calls: timed ones, after one to warm up.
    """
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

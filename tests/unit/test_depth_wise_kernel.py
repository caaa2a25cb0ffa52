"""The GPU's kernel of the LR Injection without a GPU: Triton's interpreter runs it, Triton's compiler compiles it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn.functional import conv2d

pytest.importorskip("triton")

SHAPES = [(1, 1, 1, 4), (2, 9, 17, 150), (3, 8, 8, 128), (1, 5, 33, 130), (1, 17, 3, 64)]


def injected(h: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, s: float, grid: tuple[int, int]) -> Any:
    """The equation, in float64: h_X + s·(DWConv3×3(h_L) + b), by torch's convolution."""
    image = h[1].double().unflatten(1, grid).permute(0, 3, 1, 2)
    kernel = weight.double().permute(2, 0, 1).unsqueeze(1)
    out = conv2d(image, kernel, bias.double(), padding=1, groups=len(bias))
    return h[0].double() + s * out.permute(0, 2, 3, 1).flatten(1, 2)


def interpret() -> None:
    """Run in a process of its own: TRITON_INTERPRET is read where the kernel is declared."""
    from dit4sr.acceleration.depth_wise import inject_kernel, launch

    for dtype, tolerance in ((torch.float32, 4e-6), (torch.bfloat16, 2**-7)):
        for images, height, width, channels in SHAPES:
            torch.manual_seed(0)
            h = torch.randn(2, images, height * width, channels).to(dtype)
            weight, bias = torch.randn(3, 3, channels).to(dtype), torch.randn(channels).to(dtype)
            scale = torch.tensor(1.25)
            expected, of_lr = injected(h, weight, bias, 1.25, (height, width)), h[1].clone()
            launch(inject_kernel, h, weight, bias, scale, height, width)
            error = (h[0].double() - expected).abs() / expected.abs().clamp(min=1)
            assert error.max() < tolerance, (dtype, height, width, channels, float(error.max()))
            assert torch.equal(h[1], of_lr), "h_L is read alone"


def test_the_kernel_is_the_equation() -> None:
    environment = os.environ | {"TRITON_INTERPRET": "1", "PYTHONPATH": str(Path(__file__).parent)}
    code = "import test_depth_wise_kernel as t; t.interpret()"
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("capability", [80, 90])
@pytest.mark.parametrize("images", [1, 4])
def test_it_compiles_for_a_gpu(capability: int, images: int) -> None:
    """As it is launched: a number of 1 is a constant of the code, a multiple of 16 is known to be one."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from dit4sr.acceleration import depth_wise

    signature = dict.fromkeys(("h", "weight", "bias"), "*bf16") | {"scale": "*fp32"}
    signature |= dict.fromkeys(("images", "height", "width", "channels"), "i32")
    constants = {"rows": depth_wise.ROWS, "columns": depth_wise.COLUMNS, "lanes": depth_wise.CHANNELS}
    if images == 1:
        constants["images"] = 1
    signature |= dict.fromkeys(constants, "constexpr")
    aligned = {(i,): [["tt.divisibility", 16]] for i in (0, 1, 2, 7)}
    source = ASTSource(depth_wise.inject_kernel, signature, constants, aligned)
    compiled = triton.compile(source, target=GPUTarget("cuda", capability, 32))
    assert ".local" not in compiled.asm["ptx"]
    assert len(compiled.asm["cubin"]) > 1000

"""Time one guided sampling, plain and accelerated: ``python benchmarks/sampling.py --help``.

The baseline is the plain network as it is sampled anyway: both prompts of guidance in one batch, fused attention. Each
transformation is timed alone and all together, turn by turn. Weights are random (speed does not depend on them), unless
``--ckpt`` gives trained ones, with which the differences of the results mean something.
"""

from __future__ import annotations

import argparse
import copy
import gc
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from measuring import Report, add_arguments, comparison, paired, table
from omegaconf import OmegaConf
from torch import Tensor

from dit4sr.acceleration import AccelerationSettings, accelerate
from dit4sr.autoencoders import BlockDCT
from dit4sr.config import config_dir
from dit4sr.models.build import build_on_meta
from dit4sr.models.flops import forward_flops, network_inputs, scale_of
from dit4sr.sampling import sample_euler
from dit4sr.studies.timing import random_network

PEAK = 790e12
"""Operations a second that one H200 was measured to do in a bfloat16 matrix product; ``--peak`` says another."""

CPU_STEPS = {"nano": 8}
"""Steps of a sampling on the CPU; 2 for larger backbones, since nothing but the duration follows from their number."""

TARGETS = {"dit4sr": 0.75}
"""Seconds of one 512×512 image, 40 guided steps, one H200: above, the profile is shown."""


def settings_named(name: str, **changes: Any) -> AccelerationSettings:
    """configs/acceleration, with changes."""
    return replace(AccelerationSettings.named(name), **changes)


@dataclass(frozen=True)
class Variant:
    """A row.

    Attributes:
        settings: of the acceleration.
        dtype: of the weights; None: float32 on the CPU, bfloat16 on a GPU.
        sampling: arguments of the sampler that differ.
    """

    settings: AccelerationSettings
    dtype: torch.dtype | None = None
    sampling: dict[str, Any] = field(default_factory=dict)


def on_the_cpu(compiled: bool) -> dict[str, Variant]:
    """Each transformation alone, then together."""
    variants = {
        "plain": settings_named("none"),
        "fold": settings_named("none", fold=True),
        "fuse": settings_named("none", fuse=True),
        "fold, fuse": settings_named("none", fold=True, fuse=True),
        "fold, streams batched": settings_named("none", fold=True, batch_streams=True),
        "cache": settings_named("none", cache=True),
        "fold, cache": settings_named("none", fold=True, cache=True),
        "fold, fuse, cache": settings_named("none", fold=True, fuse=True, cache=True),
        "shifts": settings_named("none", depth_wise="shifts"),
        "exact": settings_named("exact"),
    }
    if compiled:
        variants["compiled"] = settings_named("compiled")
        variants["compiled, no shifts"] = settings_named("compiled", depth_wise="conv")
    return {label: Variant(settings) for label, settings in variants.items()}


def on_the_gpu() -> dict[str, Variant]:
    """What is worth trying on a GPU, quickest to warm up first."""
    graphs = settings_named("cuda_graphs")
    variants = {
        "plain": settings_named("none"),
        "exact": settings_named("exact"),
        "compiled": settings_named("compiled"),
        "cuda_graphs": graphs,
        "fp8": settings_named("fp8"),
        "cuda_graphs, streams batched": replace(graphs, batch_streams=True),
        "cuda_graphs, convolution": replace(graphs, depth_wise="conv"),
        "cuda_graphs, tuned": replace(graphs, compile_mode="max-autotune-no-cudagraphs"),
        "step": replace(graphs, compile="step", compile_mode="reduce-overhead", cuda_graphs=False),
    }
    return {label: Variant(settings) for label, settings in variants.items()}


def approximations(device: str) -> dict[str, Variant]:
    """What changes the result, beside exact."""
    exact = settings_named("exact")
    variants = {f"exact, {kind}": Variant(replace(exact, quantise=kind)) for kind in ("int8_weights", "int8", "nf4")}
    if device == "cpu":
        variants["exact, bfloat16"] = Variant(exact, torch.bfloat16)
    for share in (0.05, 0.1, 0.2):
        variants[f"exact, reuse below {share}"] = Variant(replace(exact, reuse_below=share))
    for interval in ((0.2, 1.0), (0.2, 0.9)):
        sampling = {"guidance_interval": interval}
        variants[f"exact, guided within {interval[0]}–{interval[1]}"] = Variant(exact, sampling=sampling)
    return variants


@dataclass
class Case:
    """What is sampled.

    Attributes:
        arguments: of :func:`sample_euler`, beside the network.
        side: of the latent, in latent pixels.
    """

    arguments: dict[str, Any]
    side: int


def photographs(batch: int, pixels: int) -> Tensor:
    """Crops of photos that ship inside scikit-image, made 4 times smaller and larger again: (B, 3, pixels, pixels)."""
    from skimage import data

    photos = [data.astronaut()[:, 64:], data.coffee()[:, 100:], data.chelsea()]
    crops = [torch.from_numpy(photos[i % 3][:pixels, :pixels].copy()).permute(2, 0, 1) / 255 for i in range(batch)]
    small = torch.nn.functional.interpolate(torch.stack(crops), scale_factor=0.25, mode="bicubic", antialias=True)
    return torch.nn.functional.interpolate(small, scale_factor=4, mode="bicubic").clamp(0, 1)


def case_of(backbone: Any, device: str, batch: int, steps: int, guidance: float, dtype: torch.dtype) -> Case:
    """Random latents of one training crop, and random text."""
    side = max(backbone["crop"] // scale_of(backbone), backbone["tile"]["size"])
    noise, lr, _, tokens, pooled = (x.to(dtype) for x in network_inputs(backbone, side, batch, device))
    if backbone["autoencoder"]["name"] == "block_dct":
        lr = BlockDCT().encode(photographs(batch, side * scale_of(backbone))).to(device)
    arguments = {
        "lr_latent": lr.float(),
        "noise": noise.float(),
        "encoder_hidden_states": tokens,
        "pooled_projections": pooled,
        "negative_encoder_hidden_states": tokens.flip(1),
        "negative_pooled_projections": pooled.flip(1),
        "steps": steps,
        "guidance": guidance,
    }
    return Case(arguments, side)


def psnr(result: Tensor, reference: Tensor, backbone: Any) -> str:
    """In dB: of the images where they are decoded without weights, else of the latents, their peak the range."""
    if backbone["autoencoder"]["name"] == "block_dct":
        result, reference = (BlockDCT().decode(latent.cpu()) for latent in (result, reference))
        spread = torch.ones(())
    else:
        spread = reference.max() - reference.min()
    error = (result.double() - reference.double()).square().mean()
    return "∞" if error == 0 else f"{float(10 * torch.log10(spread.double() ** 2 / error)):.1f}"


def floor_row(report: Report, model: Any, backbone: Any, case: Case, peak: float) -> None:
    """Say what the arithmetic alone would take."""
    batch, steps = len(case.arguments["noise"]), case.arguments["steps"]
    passes = batch * steps * (1 if case.arguments["guidance"] == 1 else 2)
    plain = forward_flops(build_on_meta(model, backbone).eval(), backbone, case.side)
    folded = forward_flops(
        accelerate(build_on_meta(model, backbone).eval(), settings_named("exact")), backbone, case.side
    )
    rows = [
        [label, f"{flops / 1e9:.5g}", passes, f"{plain / flops:.3f}×", f"{flops * passes / peak:.3f}"]
        for label, flops in (("plain", plain), ("folded", folded))
    ]
    head = ["arithmetic", "GFLOP a pass", "passes", "plain's", f"floor: seconds at {peak / 1e12:.0f} TFLOP/s"]
    on_gpu = report.device != "cpu"  # a CPU's peak is not known here
    report.say(table([row if on_gpu else row[:-1] for row in rows], head if on_gpu else head[:-1]) + "\n")


def trained_network(ckpt: str) -> tuple[Any, Any, Any]:
    """Network, model and backbone of a checkpoint."""
    from dit4sr.models.checkpoint import load_trained

    trained = load_trained(ckpt)
    return trained.network, trained.config["model"], trained.config["backbone"]


@torch.no_grad()
def perturbed(network: Any) -> Any:
    """With a little added to every weight: at their starting values many are zero, and no difference would show."""
    for parameter in network.parameters():
        parameter.add_(torch.randn_like(parameter), alpha=0.02)
    return network


@torch.inference_mode()
def measure(
    report: Report, model: Any, backbone: Any, variants: dict[str, Variant], arguments: Any, batch: int, deadline: float
) -> None:
    """One table: the variants of one network at one batch, as many as are begun before the deadline."""
    device, on_gpu = arguments.device, arguments.device != "cpu"
    dtype = torch.bfloat16 if on_gpu else torch.float32
    steps = arguments.steps or (40 if on_gpu else CPU_STEPS.get(backbone["name"], 2))
    case = case_of(backbone, device, batch, steps, arguments.guidance, dtype)
    report.say(
        f"\n## {model['name']} on {backbone['name']}, batch {batch}\n\n{steps} steps, guidance {arguments.guidance:g}, "
        f"latents {case.side}×{case.side}, {str(dtype).removeprefix('torch.')}\n"
    )
    floor_row(report, model, backbone, case, arguments.peak)

    actions: dict[str, Callable[[], Tensor]] = {}
    facts: dict[str, dict[str, str]] = {"PSNR dB": {}, "warm-up s": {}, "peak MiB": {}}
    reference: Tensor | None = None
    for label, variant in variants.items():
        if time.monotonic() > deadline and actions:
            report.say(f"{label}: left out, the time is up (--minutes)")
            continue
        held = torch.cuda.memory_allocated() if on_gpu else 0
        torch.manual_seed(0)
        network: Any
        if arguments.ckpt:
            with torch.inference_mode(False):
                network = copy.deepcopy(arguments.trained[0]).to(device)
        else:
            with torch.inference_mode(False):
                network = perturbed(random_network(model, backbone, torch.device(device)))
        try:
            if variant.dtype is not None:
                network = network.to(variant.dtype)
            network = accelerate(network, variant.settings)
            if on_gpu:
                torch.cuda.reset_peak_memory_stats()

            def sample(network: Any = network, changes: dict[str, Any] = variant.sampling) -> Tensor:
                return sample_euler(network, **case.arguments, **changes)

            began = time.perf_counter()
            result = sample()
        except Exception as error:  # a variant that this machine cannot run is a row of the report, not its end
            report.say(f"{label}: {type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}")
            continue
        if on_gpu:
            torch.cuda.synchronize()
            facts["peak MiB"][label] = f"{(torch.cuda.max_memory_allocated() - held) / 2**20:.0f}"
        facts["warm-up s"][label] = f"{time.perf_counter() - began:.1f}"
        reference = result if reference is None else reference
        facts["PSNR dB"][label] = psnr(result, reference, backbone)
        actions[label] = sample
    rounds = arguments.rounds if batch == 1 or not on_gpu else min(arguments.rounds, 2)
    if not actions:
        return report.say("nothing could be run")
    measured = paired(actions, rounds=rounds, warm_up=0, device=device)
    report.say(comparison(measured, columns={head: cells for head, cells in facts.items() if cells}))
    if on_gpu:
        exact = [label for label in measured if not (variants[label].settings.approximate or variants[label].sampling)]
        best = min(exact or measured, key=lambda label: measured[label].seconds)
        report.say(f"\n{batch / measured[best].seconds:.2f} images/s ({best})")
        if batch == 1 and (arguments.profile or measured[best].seconds > TARGETS.get(model["name"], float("inf"))):
            profile(report, best, actions[best])


def profile(report: Report, label: str, action: Callable[[], Tensor]) -> None:
    """Where a sampling's time goes, by kernel."""
    from torch.profiler import ProfilerActivity
    from torch.profiler import profile as record

    with record(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as recorded:
        action()
        torch.cuda.synchronize()
    averages = recorded.key_averages()
    report.say(f"\nKernels of {label}:\n\n```\n{averages.table(sort_by='self_cuda_time_total', row_limit=20)}\n```")


def main() -> None:
    """Print a table a network and batch."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_arguments(parser, rounds=5)
    parser.add_argument("--backbones", nargs="*", help="names of configs/backbone (default: nano small; sd35_medium)")
    parser.add_argument("--models", nargs="*", help="names of configs/model (default: dit4sr sd3_controlnet)")
    parser.add_argument("--batches", nargs="*", type=int, help="images sampled at once (default: 1; on a GPU 1 8)")
    parser.add_argument("--variants", nargs="*", help="of these alone, plain being the baseline (default: all)")
    parser.add_argument("--steps", type=int, help="Euler steps (default 8 for nano, else 2; on a GPU 40)")
    parser.add_argument("--guidance", type=float, default=8.0, help="of classifier-free guidance (default 8)")
    parser.add_argument("--ckpt", help="a checkpoint whose network is sampled, with its own model and backbone")
    parser.add_argument("--compile", action="store_true", help="on the CPU: also compiled blocks")
    parser.add_argument("--approximate", action="store_true", help="also what changes results, best with --ckpt")
    parser.add_argument("--peak", type=float, default=PEAK, help="operations a second of the floor (default 790e12)")
    parser.add_argument("--profile", action="store_true", help="on a GPU: show the kernels in any case")
    parser.add_argument("--minutes", type=float, default=5.0, help="no variant is begun after (default 5)")
    arguments = parser.parse_args()
    on_gpu = arguments.device != "cpu"
    if on_gpu and not torch.cuda.is_available():
        parser.error(f"--device {arguments.device}: torch finds no GPU here")

    variants = on_the_gpu() if on_gpu else on_the_cpu(arguments.compile)
    variants |= approximations(arguments.device) if arguments.approximate else {}
    if arguments.variants:
        variants = {label: s for label, s in variants.items() if label in {"plain", *arguments.variants}}
    report = Report("sampling", arguments.device, arguments.note)
    report.say("one sampling from noise to latent, text given, no autoencoder; PSNR against plain's result, same seed")
    batches = arguments.batches or ([1, 8] if on_gpu else [1])
    if arguments.ckpt:
        arguments.trained = trained_network(arguments.ckpt)
        pairs = [(arguments.trained[1], arguments.trained[2])]
    else:
        models = arguments.models or (["dit4sr", "sd3_controlnet"] if on_gpu else ["dit4sr"])
        backbones = arguments.backbones or (["sd35_medium"] if on_gpu else ["nano", "small"])
        pairs = [(named("model", m), named("backbone", b)) for b in backbones for m in models]
    tables = [(model, backbone, batch) for model, backbone in pairs for batch in batches]
    began = time.monotonic()
    for n, (model, backbone, batch) in enumerate(tables):
        # A share of the time each, so that no table takes another's.
        deadline = began + 60 * arguments.minutes * (n + 1) / len(tables)
        measure(report, model, backbone, variants, arguments, batch, deadline)
        if on_gpu:
            gc.collect()
            torch.cuda.empty_cache()
    report.write(arguments.out)


def named(group: str, name: str) -> Any:
    """A config of a group as plain values."""
    return OmegaConf.to_container(OmegaConf.load(config_dir() / group / f"{name}.yaml"), resolve=True)


if __name__ == "__main__":
    main()

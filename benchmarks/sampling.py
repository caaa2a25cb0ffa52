"""Time one guided sampling, plain and accelerated: ``python benchmarks/sampling.py --help``.

The baseline is the plain network as it is sampled anyway: both prompts of guidance in one batch, fused attention. Each
transformation is timed alone and all together, turn by turn. Weights are random (speed does not depend on them), unless
``--ckpt`` gives trained ones, with which the differences of the results mean something. On a GPU the rows that the
targets are about come first; what there is no time for is a row that says so.
"""

from __future__ import annotations

import argparse
import copy
import gc
import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from cases import Case, case_of, psnr
from configs import named
from measuring import Measured, Report, add_arguments, choose_device, comparison, in_a_line, paired, seconds_of, table
from targets import STEPS, misses_its_time, of_the_targets, sum_up
from torch import Tensor
from tracing import cost_table
from variants import Part, Variant, approximations, gpu_parts, narrowed, on_the_cpu, on_the_gpu, settings_named

from dit4sr.acceleration import accelerate
from dit4sr.models.build import build_on_meta
from dit4sr.models.flops import flops_of, forward_flops, network_inputs
from dit4sr.sampling import sample_euler
from dit4sr.studies.timing import random_network

PEAK = 790e12
"""Operations a second that one H200 was measured to do in a bfloat16 matrix product; ``--peak`` says another."""

CPU_STEPS = {"nano": 8}
"""Steps of a sampling on the CPU; 2 for larger backbones, since nothing but the duration follows from their number."""

COMPILING = 45.0
"""Seconds that a compiled row is expected to need, until one has said how long it takes here."""

ROUNDS = {"nano": 7}
PROFILED_STEPS = 4


@cache
def counted_flops(model: str, backbone: str, side: int) -> tuple[int, int]:
    """FLOPs of a pass of the plain network, and of the prepared one; counting takes seconds, once for all batches."""
    fields = json.loads(model), json.loads(backbone)
    return forward_flops(build_on_meta(*fields).eval(), fields[1], side), prepared_flops(*fields, side)


@torch.no_grad()
def prepared_flops(model: Any, backbone: Any, side: int) -> int:
    """FLOPs of a pass of the folded network, what no step changes (text, LR embedding, modulations) left out."""
    network = accelerate(build_on_meta(model, backbone).eval(), settings_named("exact"))
    z, lr, timestep, tokens, pooled = network_inputs(backbone, side)
    ahead = network.prepare_text(tokens), network.prepare_schedule(timestep, pooled)(0)
    tokens_of_lr = network.prepare_lr(lr)
    return flops_of(lambda: network.velocity(z, tokens_of_lr, timestep, *ahead))


def floor_row(report: Report, model: Any, backbone: Any, case: Case, peak: float) -> None:
    """Say what the arithmetic alone would take."""
    batch, steps = len(case.arguments["noise"]), case.arguments["steps"]
    passes = batch * steps * (1 if case.arguments["guidance"] == 1 else 2)
    plain, folded = counted_flops(json.dumps(model), json.dumps(backbone), case.side)
    rows = [
        [label, f"{flops / 1e9:.5g}", passes, f"{plain / flops:.3f}×", f"{flops * passes / peak:.3f}"]
        for label, flops in (("plain", plain), ("folded, prepared ahead", folded))
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


@dataclass
class Budget:
    """The time that is left on a GPU: a row is begun where it is expected to end in time.

    Attributes:
        began: of the first table, by ``time.monotonic``.
        minutes: for all of them.
        compiling: seconds that the longest row with a compiler has needed; None before there was one.
        running: the same without one, of the table at hand.
    """

    began: float
    minutes: float
    compiling: float | None = None
    running: float | None = None

    def until(self, share: float) -> float:
        """When the tables up to this share of the time are to be done."""
        return self.began + 60 * self.minutes * share

    def expected(self, variant: Variant) -> float:
        """Seconds that a row will need, its timed rounds not counted."""
        usual = self.compiling or COMPILING if variant.waits_for_a_compiler else self.running or 1.0
        return usual if variant.patience is None else max(usual, variant.patience)

    def allows(self, variant: Variant, until: float) -> bool:
        """Whether a row may begin: it ends in time, and a timed call of it too."""
        return time.monotonic() + self.expected(variant) + (self.running or 0.0) < until

    def took(self, variant: Variant, seconds: float) -> None:
        """Learn from a row."""
        if variant.patience is not None:
            return
        if variant.waits_for_a_compiler:
            self.compiling = max(seconds, self.compiling or 0.0)
        else:
            self.running = max(seconds, self.running or 0.0)


def network_for(variant: Variant, model: Any, backbone: Any, arguments: Any) -> Any:
    """A network of its own, random or the checkpoint's, of the variant's type and made as fast as it says."""
    torch.manual_seed(0)
    device = torch.device(arguments.device)
    with torch.inference_mode(False):
        if arguments.ckpt:
            network = copy.deepcopy(arguments.trained[0]).to(device)
        else:
            network = perturbed(random_network(model, backbone, device))
    if (dtype := variant.dtype_on(device)) is not None:
        network = network.to(dtype)
    return accelerate(network, variant.settings)


@torch.inference_mode()
def measure(
    report: Report, part: Part, variants: Mapping[str, Variant], arguments: Any, budget: Budget
) -> dict[str, Measured]:
    """One table: the variants of one network at one batch; on a GPU as many as end before the part's time is up."""
    device, on_gpu, batch = arguments.device, arguments.device != "cpu", part.batch
    budget.running = None  # another network or batch takes another time
    until = budget.until(part.share) if on_gpu else float("inf")
    if arguments.ckpt:
        _, model, backbone = arguments.trained
    else:
        model, backbone = named("model", part.model), named("backbone", part.backbone)
    dtype = torch.bfloat16 if on_gpu else torch.float32
    steps = arguments.steps or (STEPS if on_gpu else CPU_STEPS.get(backbone["name"], 2))
    report.say(f"\n## {model['name']} on {backbone['name']}, batch {batch}\n")
    if time.monotonic() > until:
        report.say(f"Left out for lack of time (--minutes {arguments.minutes:g}): {', '.join(variants)}")
        return {}
    case = case_of(backbone, device, batch, steps, arguments.guidance, dtype)
    report.say(
        f"{steps} steps, guidance {arguments.guidance:g}, latents {case.side}×{case.side}, "
        f"{str(dtype).removeprefix('torch.')}\n"
    )
    floor_row(report, model, backbone, case, arguments.peak)

    actions: dict[str, Callable[..., Tensor]] = {}
    missing: dict[str, str] = {}
    facts: dict[str, dict[str, str]] = {"PSNR dB": {}, "one step's error": {}, "warm-up s": {}, "peak MiB": {}}
    reference: tuple[Tensor, Tensor] | None = None
    for label, variant in variants.items():
        if actions and not budget.allows(variant, until):
            missing[label] = "left out: no time"
            continue
        held, began = torch.cuda.memory_allocated() if on_gpu else 0, time.monotonic()
        try:
            network = network_for(variant, model, backbone, arguments)
            if on_gpu:
                torch.cuda.reset_peak_memory_stats()

            def sample(network: Any = network, changes: dict[str, Any] = variant.sampling, **more: Any) -> Tensor:
                return sample_euler(network, **case.arguments | changes | more)

            warming = time.perf_counter()
            result = sample()
            if on_gpu:
                torch.cuda.synchronize()
                facts["peak MiB"][label] = f"{(torch.cuda.max_memory_allocated() - held) / 2**20:.0f}"
            facts["warm-up s"][label] = f"{time.perf_counter() - warming:.1f}"
            first = sample(steps=1)
            if on_gpu:
                # Said at once: if a later row breaks the GPU's context, no table of this one comes.
                report.say(
                    f"{label}: ready in {facts['warm-up s'][label]} s, then {seconds_of(sample, device):.3f} s\n"
                )
        except Exception as error:  # a variant that this machine cannot run is a row of the report, not its end
            missing[label] = in_a_line(error)
            budget.took(variant, time.monotonic() - began)
            continue
        budget.took(variant, time.monotonic() - began)
        reference = reference or (result, first)
        facts["PSNR dB"][label] = psnr(result, reference[0], backbone)
        moved = (reference[1] - case.arguments["noise"]).float().norm()
        facts["one step's error"][label] = f"{float((first - reference[1]).float().norm() / moved):.1e}"
        actions[label] = sample
    if not actions:
        report.say("nothing could be run: " + "; ".join(f"{label}: {why}" for label, why in missing.items()))
        return {}
    rounds = arguments.rounds or ROUNDS.get(backbone["name"], 3)
    measured = paired(actions, rounds=min(rounds, 3) if on_gpu else rounds, warm_up=0, device=device, until=until)
    columns = {head: cells for head, cells in facts.items() if cells}
    report.say(comparison(measured, columns=columns, missing=missing))
    if on_gpu:
        exact = [n for n in measured if not variants[n].approximate]
        best = min(exact or measured, key=lambda n: measured[n].seconds)
        report.say(f"\n{batch / measured[best].seconds:.2f} images/s ({best})")
        held_to_it = "exact" in measured and of_the_targets(backbone["name"], arguments)
        missed = held_to_it and misses_its_time(part.model, batch, measured[best])
        if batch == 1 and (arguments.profile or missed):
            profile(report, best, lambda: actions[best](steps=PROFILED_STEPS))
    return measured


def profile(report: Report, label: str, action: Callable[[], Tensor]) -> None:
    """Where a sampling's time goes, by kernel."""
    from torch.profiler import ProfilerActivity
    from torch.profiler import profile as record

    with record(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as recorded:
        action()
        torch.cuda.synchronize()
    kernels = cost_table(recorded.key_averages(), True, PROFILED_STEPS, rows=20)
    report.say(f"\nKernels of {label}, {PROFILED_STEPS} steps:\n\n{kernels}")


def variants_of(arguments: argparse.Namespace) -> dict[str, Variant]:
    """All rows there may be: approximations where all of them, or this one, are asked for."""
    exact = on_the_gpu() if arguments.device != "cpu" else on_the_cpu(arguments.compile)
    others = approximations(arguments.device)
    wanted = arguments.variants or ()
    return exact | {n: v for n, v in others.items() if arguments.approximate or n in wanted}


def parts_of(arguments: argparse.Namespace, variants: Mapping[str, Variant]) -> list[Part]:
    """The tables, with their rows: the GPU's own unless the command line chooses networks or batches, and what is asked
    for beside; else one a network and batch, in equal shares."""
    on_gpu = arguments.device != "cpu"
    if arguments.ckpt:
        arguments.trained = trained_network(arguments.ckpt)
        pairs = [(arguments.trained[1]["name"], arguments.trained[2]["name"])]
    elif on_gpu and not (arguments.models or arguments.backbones or arguments.batches):
        return narrowed(gpu_parts(list(variants)), list(variants), arguments.variants or ())
    else:
        models = arguments.models or (["dit4sr", "sd3_controlnet"] if on_gpu else ["dit4sr"])
        backbones = arguments.backbones or (["sd35_medium"] if on_gpu else ["nano", "small"])
        pairs = [(m, b) for b in backbones for m in models]
    tables = [(m, b, batch) for m, b in pairs for batch in arguments.batches or ([1, 8] if on_gpu else [1])]
    parts = [Part(*one, None, (n + 1) / len(tables)) for n, one in enumerate(tables)]
    return narrowed(parts, list(variants), arguments.variants or ())


def main() -> None:
    """Print a table a network and batch, and what sums them up."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_arguments(parser, rounds=None, default="7 for nano, else 3")
    parser.add_argument("--backbones", nargs="*", help="names of configs/backbone (default: nano small; sd35_medium)")
    parser.add_argument(
        "--models", nargs="*", help="names of configs/model (default: dit4sr; on a GPU the baseline too)"
    )
    parser.add_argument("--batches", nargs="*", type=int, help="images sampled at once (default: 1; on a GPU 1 8)")
    parser.add_argument("--variants", nargs="*", help="of these alone, plain being the baseline (default: all)")
    parser.add_argument("--steps", type=int, help="Euler steps (default 8 for nano, else 2; on a GPU 40)")
    parser.add_argument("--guidance", type=float, default=8.0, help="of classifier-free guidance (default 8)")
    parser.add_argument("--ckpt", help="a checkpoint whose network is sampled, with its own model and backbone")
    parser.add_argument("--compile", action="store_true", help="on the CPU: also compiled blocks")
    parser.add_argument("--approximate", action="store_true", help="also what changes results, best with --ckpt")
    parser.add_argument("--peak", type=float, default=PEAK, help="operations a second of the floor (default 790e12)")
    parser.add_argument("--profile", action="store_true", help="on a GPU: show the kernels in any case")
    parser.add_argument("--minutes", type=float, default=4.4, help="on a GPU: no row begins that would end after (4.4)")
    arguments = parser.parse_args()
    on_gpu = arguments.device != "cpu"
    choose_device(parser, arguments.device)

    variants = variants_of(arguments)
    if unknown := sorted(set(arguments.variants or ()) - set(variants)):
        there = dict.fromkeys([*variants, *approximations(arguments.device)])
        parser.error(f"--variants {', '.join(unknown)}: there are {'; '.join(there)}")
    report = Report("sampling", arguments.device, arguments.note)
    report.say("one sampling from noise to latent, text given, no autoencoder; PSNR against plain's result, same seed")
    parts, budget = parts_of(arguments, variants), Budget(time.monotonic(), arguments.minutes)
    results: dict[Part, dict[str, Measured]] = {}
    for part in parts:
        try:
            results[part] = measure(report, part, {n: variants[n] for n in part.labels or ()}, arguments, budget)
            torch._dynamo.reset()  # which keeps what it compiled, and so the networks
            gc.collect()
            if on_gpu:
                torch.cuda.empty_cache()
        except Exception as error:  # of the GPU as a whole, which may be of no use any more: what was found is written
            if not on_gpu:
                raise
            report.say(f"this table ended early: {in_a_line(error)}")
    sum_up(report, results, arguments, {n for n, variant in variants.items() if variant.approximate})
    report.write(arguments.out)


if __name__ == "__main__":
    main()

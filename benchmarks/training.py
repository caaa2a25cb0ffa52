"""Time training steps, and show where their time goes: ``python benchmarks/training.py --help``.

A step is what training does with a batch of latents: network, loss, backward pass, guard, clipping, optimiser, average.
On the CPU it is the nano recipe's; with ``--device cuda`` DiT4SR on a frozen bfloat16 base of SD3.5-Medium's size with
random weights (speed does not depend on them), trained weights in float32, 512×512, batch 8, with and without gradient
checkpointing; then the same through Lightning, from shards on the disk, with its callbacks. There is a limit of time
there (``--minutes``): rows that would end after it say so. ``--profile`` says how the nano training's and sampling's
time divides; ``--trace`` writes a chrome trace of three steps, and counts where the host waited in them.
"""

from __future__ import annotations

import argparse
import gc
import multiprocessing
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import torch
from configs import named
from measuring import Report, add_arguments, choose_device, comparison, in_a_line, paired, seconds_of
from tracing import trace
from training_step import Step, random_training_network

from dit4sr.models.flops import scale_of, step_flops
from dit4sr.training.compiling import compile_network
from dit4sr.training.utilisation import peak_flops

COMPILING = 60.0
"""Seconds that compiling a step's blocks, forward and backward, is expected to take on a GPU."""
BY_LIGHTNING = 40.0
"""Seconds that are kept for the training by Lightning."""


def on_the_cpu(model: str, backbone: str, batch: int | None, compiled: bool) -> dict[str, Step]:
    """A network of its own for each variant."""
    fields, training = named("backbone", backbone), named("training", backbone)
    variants = {}
    for label in ("plain", "checkpointing", *(["compiled blocks"] if compiled else [])):
        network = random_training_network(named("model", model), fields, "cpu")
        if label == "checkpointing":
            network.enable_gradient_checkpointing()
        compile_network(network, "blocks" if label.startswith("compiled") else False)
        variants[label] = Step(network, fields, training, batch or training["batch_size"], "cpu")
    return variants


def on_the_gpu(step: Step) -> dict[str, Callable[[], None]]:
    """One network, which is run in several ways."""
    compile_network(step.network, "blocks")

    def variant(checkpointing: bool, compiled: bool) -> Callable[[], None]:
        def run() -> None:
            if checkpointing:
                step.network.enable_gradient_checkpointing()
            else:
                step.network.disable_gradient_checkpointing()
            with torch.compiler.set_stance("default" if compiled else "force_eager"):
                step()

        return run

    return {
        "checkpointing": variant(True, False),
        "plain": variant(False, False),
        "compiled blocks": variant(False, True),
        "checkpointing, compiled blocks": variant(True, True),
    }


def warmed(
    actions: Mapping[str, Callable[[], object]], device: str, until: float
) -> tuple[dict[str, Callable[[], object]], dict[str, str]]:
    """Call each once, as long as there is time; what cannot run, or has no time, is said.

    Args:
        actions: label → step; those with "compiled" in their names wait for the compiler.
        device: cpu or cuda….
        until: of ``time.monotonic``.
    """
    ready: dict[str, Callable[[], object]] = {}
    missing: dict[str, str] = {}
    compiling = COMPILING
    for label, action in actions.items():
        compiled = "compiled" in label
        if ready and time.monotonic() + (compiling if compiled else 1.0) > until:
            missing[label] = "left out: no time"
            continue
        try:
            took = seconds_of(action, device)
            seconds_of(action, device)
        except Exception as error:  # what this machine cannot run is a row of the report, not its end
            full = isinstance(error, torch.OutOfMemoryError)
            missing[label] = "does not fit the memory" if full else in_a_line(error)
            continue
        compiling = took if compiled else compiling
        ready[label] = action
    return ready, missing


def steps_table(report: Report, arguments: argparse.Namespace, until: float = float("inf")) -> Callable[[], object]:
    """Time the variants that there is time for; the fastest is returned."""
    device, backbone = report.device, named("backbone", arguments.backbone)
    side = backbone["crop"] // scale_of(backbone)
    counting = partial(step_flops, named("model", arguments.model), backbone, side, checkpointing=True)
    if device.startswith("cuda"):
        # Counting the full size takes a processor a quarter of a minute: beside the GPU's work, not after it.
        meanwhile = ProcessPoolExecutor(1, multiprocessing.get_context("spawn")).submit(counting)
        training = named("training", arguments.backbone)
        network = random_training_network(named("model", arguments.model), backbone, device)
        step = Step(network, backbone, training, arguments.batch or 8, device)
        actions: Mapping[str, Callable[[], object]] = on_the_gpu(step)
        batch = len(step.z)
    else:
        made = on_the_cpu(arguments.model, arguments.backbone, arguments.batch, not arguments.no_compile)
        actions, batch = made, len(made["plain"].z)
    if arguments.no_compile:
        actions = {label: action for label, action in actions.items() if "compiled" not in label}
    actions, missing = warmed(actions, device, until)
    if not actions:
        raise SystemExit(f"no step can be run: {missing}")
    measured = paired(actions, rounds=arguments.rounds, warm_up=0, device=device, until=until)
    counted = meanwhile.result() if device.startswith("cuda") else counting()
    half = "bf16-mixed" if device.startswith("cuda") else "32-true"
    peak = peak_flops(torch.device(device), half, arguments.peak) or float("nan")
    rate = {label: batch / (m.seconds * peak) for label, m in measured.items()}
    columns = {
        "samples/s": {label: f"{batch / m.seconds:.1f}" for label, m in measured.items()},
        "MFU": {label: f"{100 * counted.model * r:.1f} %" for label, r in rate.items()},
        "HFU": {
            label: f"{100 * (counted.hardware if 'checkpointing' in label else counted.model) * r:.1f} %"
            for label, r in rate.items()
        },
    }
    if device.startswith("cuda"):
        columns["peak GiB"] = {label: f"{peak_gib(action):.1f}" for label, action in actions.items()}
    what = f"{arguments.model} on {arguments.backbone}"
    report.say(f"Training steps of {what}, {batch} crops of {backbone['crop']} px:\n")
    report.say(comparison(measured, what="step", columns=columns, missing=missing) + "\n")
    parts = (counted.forward, counted.activations, counted.weights, counted.recomputed)
    names = ("forward", "gradients of activations", "of trained weights", "computed again with checkpointing")
    words = ", ".join(f"{part / 1e9:.4g} {name}" for part, name in zip(parts, names, strict=True))
    report.say(
        f"GFLOP of a crop: {words}. MFU = the first three × crops/s / {peak / 1e12:.3g} TFLOP/s; HFU: all four.\n"
    )
    return actions[min(measured, key=lambda label: measured[label].seconds)]


@contextmanager
def said(report: Report, what: str) -> Iterator[None]:
    """On a GPU what fails is a line of the report, so that the tables before it are written."""
    try:
        yield
    except Exception as error:
        if not report.device.startswith("cuda"):
            raise
        report.say(f"{what} ended early: {in_a_line(error)}\n")


def peak_gib(action: Callable[[], object]) -> float:
    """Most memory that torch has allocated on the GPU during a call."""
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    action()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() / 2**30


def main() -> None:
    """Print the tables, and write them where asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="dit4sr", help="a name of configs/model (default dit4sr)")
    parser.add_argument("--backbone", help="a name of configs/backbone (default nano; on a GPU sd35_medium)")
    parser.add_argument("--batch", type=int, help="crops a step (default: the recipe's; on a GPU 8)")
    parser.add_argument("--peak", default="auto", help="FLOP/s that MFU refers to (default: as trainer.peak_flops)")
    parser.add_argument("--no-compile", action="store_true", help="leave torch.compile out")
    parser.add_argument("--by-lightning", action="store_true", help="on the CPU too: the training by Lightning")
    parser.add_argument("--workers", type=int, default=8, help="data workers of the training by Lightning (default 8)")
    parser.add_argument("--minutes", type=float, default=2.6, help="on a GPU: nothing begins that ends after (2.6)")
    parser.add_argument("--steps", type=int, default=30, help="of the training by Lightning or under --profile")
    parser.add_argument("--profile", action="store_true", help="where the nano training's and sampling's time goes")
    parser.add_argument("--trace", type=Path, metavar="FILE", help="write a chrome trace of three steps (.json.gz too)")
    add_arguments(parser)
    arguments = parser.parse_args()
    choose_device(parser, arguments.device)
    on_gpu = arguments.device.startswith("cuda")
    arguments.backbone = arguments.backbone or ("sd35_medium" if on_gpu else "nano")
    until = time.monotonic() + 60 * arguments.minutes if on_gpu else float("inf")
    arguments.rounds = min(arguments.rounds, 3) if on_gpu else arguments.rounds

    report = Report("profile" if arguments.profile else "training", arguments.device, arguments.note)
    if arguments.profile:
        from profiling import profile_sampling, profile_training

        profile_training(report, arguments.steps)
        profile_sampling(report)
    else:
        fastest = steps_table(report, arguments, until - BY_LIGHTNING)
        if arguments.trace:
            with said(report, "The trace"):
                trace(report, fastest, arguments.trace)
        if on_gpu or arguments.by_lightning:
            del fastest
            torch._dynamo.reset()  # which keeps what it compiled, and so the network
            gc.collect()
            if on_gpu:
                torch.cuda.empty_cache()
            if time.monotonic() + BY_LIGHTNING < until:
                with said(report, "The training by Lightning"):
                    from by_lightning import end_to_end

                    end_to_end(report, arguments, arguments.steps)
            else:
                report.say(f"By Lightning from shards: left out for lack of time (--minutes {arguments.minutes:g}).\n")
    report.write(arguments.out)


if __name__ == "__main__":
    main()

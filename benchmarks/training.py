"""Time training steps, and show where their time goes: ``python benchmarks/training.py --help``.

A step is what training does with a batch of latents: network, loss, backward pass, guard, clipping, optimiser, average.
On the CPU it is the nano recipe's; with ``--device cuda`` DiT4SR on a frozen bfloat16 base of SD3.5-Medium's size with
random weights (speed does not depend on them), trained weights in float32, 512×512, batch 8; then the same through
Lightning, from shards on the disk, with its callbacks. ``--profile`` says how the nano training's and sampling's time
divides; ``--trace`` writes a chrome trace of three steps.
"""

from __future__ import annotations

import argparse
import gc
import tempfile
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from measuring import Report, add_arguments, comparison, paired, table
from omegaconf import OmegaConf

from dit4sr import flow
from dit4sr.config import config_dir
from dit4sr.models.base import as_arguments
from dit4sr.models.build import Network, build_network, freeze, from_base
from dit4sr.models.flops import network_inputs, scale_of, step_flops
from dit4sr.training.compiling import compile_network
from dit4sr.training.ema import ExponentialMovingAverage
from dit4sr.training.optimizers import build_optimizer, skips_on_device
from dit4sr.training.utilisation import peak_flops

WAITS = ("cudaStreamSynchronize", "cudaDeviceSynchronize", "cudaMemcpy", "aten::item", "aten::_local_scalar_dense")
"""What the host does where it waits for a GPU."""


def config(group: str, name: str) -> dict[str, Any]:
    """A file of configs, as plain values."""
    path = config_dir() / group / f"{name}.yaml"
    return OmegaConf.to_container(OmegaConf.load(path), resolve=True)  # type: ignore[return-value]


def random_training_network(model: Mapping[str, Any], backbone: Mapping[str, Any], device: str) -> Network:
    """A network as it is trained: with a pretrained base that is frozen, in bfloat16 and of random weights."""
    if not backbone["pretrained"]:
        return build_network(model, backbone, seed=0).to(device)
    from diffusers import SD3Transformer2DModel

    with torch.device(device), torch.no_grad():
        base = SD3Transformer2DModel(**as_arguments(backbone["transformer"])).to(torch.bfloat16)
        network = from_base(model, base, pretrained=True)
    freeze(network, pretrained=True)
    for parameter in network.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    return network.train()


class Step:
    """One training step of a network on latents that are there already."""

    def __init__(
        self, network: Network, backbone: Mapping[str, Any], training: Mapping[str, Any], batch: int, device: str
    ) -> None:
        self.network, self.device = network, device
        self.optimizer, self.ema = build_optimizer(network, training), ExponentialMovingAverage(network, 0.999)
        self.clip, self.half = training["gradient_clip"], "16" in training["precision"]
        self.trained = [p for p in network.parameters() if p.requires_grad]
        side = backbone["crop"] // scale_of(backbone)
        self.z, self.lr, _, self.tokens, self.pooled = network_inputs(backbone, side, batch, device)
        self.eps, self.sigma = torch.randn_like(self.z), torch.rand(batch, device=device)

    def __call__(self) -> None:
        with torch.autocast(self.device, torch.bfloat16) if self.half else nullcontext():
            z_t = flow.interpolate(self.z, self.eps, self.sigma)
            arguments = z_t, self.lr, 1000 * self.sigma, self.tokens, self.pooled
            loss = flow.latent_loss(self.network(*arguments, return_dict=False), self.z, self.eps, self.sigma)
        loss.backward()
        finite = torch.isfinite(torch.nn.utils.get_total_norm([p.grad for p in self.trained if p.grad is not None]))
        if skips_on_device(self.optimizer):
            self.optimizer.found_inf = (~finite).float()  # type: ignore[attr-defined]
        else:
            assert bool(finite)
        torch.nn.utils.clip_grad_norm_(self.trained, self.clip)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.ema.update(self.network, 1000)


def on_the_cpu(model: str, backbone: str, batch: int | None, compiled: bool) -> dict[str, Step]:
    """A network of its own for each variant."""
    fields, training = config("backbone", backbone), config("training", backbone)
    variants = {}
    for label in ("plain", "checkpointing", *(["compiled blocks"] if compiled else [])):
        network = random_training_network(config("model", model), fields, "cpu")
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
        "checkpointing, compiled blocks": variant(True, True),
        "compiled blocks": variant(False, True),
    }


def steps_table(report: Report, arguments: argparse.Namespace) -> Callable[[], object]:
    """Time the variants; the fastest is returned."""
    device, backbone = report.device, config("backbone", arguments.backbone)
    if device.startswith("cuda"):
        training = config("training", arguments.backbone)
        network = random_training_network(config("model", arguments.model), backbone, device)
        step = Step(network, backbone, training, arguments.batch or 8, device)
        actions: Mapping[str, Callable[[], object]] = on_the_gpu(step)
        batch = len(step.z)
    else:
        made = on_the_cpu(arguments.model, arguments.backbone, arguments.batch, not arguments.no_compile)
        actions, batch = made, len(made["plain"].z)
    measured = paired(actions, rounds=arguments.rounds, device=device)
    side = backbone["crop"] // scale_of(backbone)
    counted = step_flops(config("model", arguments.model), backbone, side, checkpointing=True)
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
    report.say(comparison(measured, what="step", columns=columns) + "\n")
    parts = (counted.forward, counted.activations, counted.weights, counted.recomputed)
    names = ("forward", "gradients of activations", "of trained weights", "computed again with checkpointing")
    words = ", ".join(f"{part / 1e9:.4g} {name}" for part, name in zip(parts, names, strict=True))
    report.say(
        f"GFLOP of a crop: {words}. MFU = the first three × crops/s / {peak / 1e12:.3g} TFLOP/s; HFU: all four.\n"
    )
    return actions[min(measured, key=lambda label: measured[label].seconds)]


def peak_gib(action: Callable[[], object]) -> float:
    """Most memory that torch has allocated on the GPU during a call."""
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    action()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() / 2**30


def trace(report: Report, step: Callable[[], object], path: Path) -> None:
    """Write a chrome trace of three steps, and count where the host waited in them."""
    from torch.profiler import ProfilerActivity, profile, record_function

    activities = [ProfilerActivity.CPU] + ([ProfilerActivity.CUDA] if report.device.startswith("cuda") else [])
    with profile(activities=activities) as profiler:
        for _ in range(3):
            with record_function("training step"):
                step()
    path.parent.mkdir(parents=True, exist_ok=True)
    profiler.export_chrome_trace(str(path))
    on_gpu = report.device.startswith("cuda")
    inside = [(e.time_range.start, e.time_range.end) for e in profiler.events() if e.name == "training step"]
    waits = [
        event.name
        for event in profiler.events()
        if event.name in WAITS and any(a <= event.time_range.start < b for a, b in inside)
    ]
    counted = f"; the host waits for the GPU {len(waits)} times in them" if on_gpu else ""
    report.say(f"Trace of three steps: {path.name}{counted}.\n")
    averages = profiler.key_averages()
    column = "self_device_time_total" if on_gpu else "self_cpu_time_total"
    top = sorted((a for a in averages if a.key != "training step"), key=lambda a: -getattr(a, column))[:10]
    whole = sum(getattr(a, column) for a in averages) or 1
    rows = [[a.key[:60], f"{getattr(a, column) / 3000:.1f}", f"{100 * getattr(a, column) / whole:.0f} %"] for a in top]
    report.say(table(rows, ["operator", "ms a step", "share"]) + "\n")


def end_to_end(report: Report, arguments: argparse.Namespace, steps: int) -> None:
    """Training by Lightning from shards: photos are read, degraded by workers and encoded; text is given."""
    import lightning
    from loading import data_module, shards_of_photos

    from dit4sr.prompts import HashingTextEncoder
    from dit4sr.studies.counting import random_autoencoder
    from dit4sr.training.data_report import DataReport
    from dit4sr.training.guards import FiniteGradients, LossSpikes
    from dit4sr.training.module import DiT4SRModule
    from dit4sr.training.trainer import build_monitor

    model, backbone = config("model", arguments.model), config("backbone", arguments.backbone)
    training = config("training", arguments.backbone) | {"gradient_checkpointing": False, "compile": "blocks"}
    text, batch = backbone["text_encoder"], arguments.batch or 8
    with tempfile.TemporaryDirectory() as folder:
        shards = shards_of_photos(Path(folder) / "shards", backbone["crop"] + 128)
        data = data_module(shards, crop=backbone["crop"], batch=batch, workers=arguments.workers)
        autoencoder = random_autoencoder(backbone, report.device)
        module = DiT4SRModule(
            random_training_network(model, backbone, report.device),
            autoencoder,
            HashingTextEncoder(text["tokens"], text["width"], text["pooled_width"]),
            training,
            steps=steps,
            seed=0,
            identity={},
        )
        settings = {"log_every_n_steps": steps // 3, "max_steps": steps, "precision": training["precision"]}
        settings |= {"peak_flops": arguments.peak}
        run = {"trainer": settings, "backbone": backbone, "model": model, "training": training}
        monitor = build_monitor(run | {"data": {"batch_size": batch}}, Path(folder))
        callbacks = [FiniteGradients(3, Path(folder)), LossSpikes(Path(folder)), DataReport(steps // 3), monitor]
        trainer = lightning.Trainer(
            max_steps=steps,
            accelerator="gpu" if report.device.startswith("cuda") else "cpu",
            devices=1,
            precision=training["precision"],
            gradient_clip_val=training["gradient_clip"],
            log_every_n_steps=steps // 3,
            callbacks=[*callbacks, monitor.last],
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        trainer.fit(module, datamodule=data)
    values = monitor.latest
    report.say(
        f"By Lightning from shards, {arguments.workers} workers, the autoencoder encoding both images, compiled "
        f"blocks, the last {steps // 3} of {steps} steps: {values['speed/samples_per_second']:.1f} samples/s, "
        f"data wait {100 * values['speed/data_wait']:.2f} %, MFU {100 * values.get('train/mfu', float('nan')):.1f} % "
        f"(the autoencoder's work is not counted), {values.get('speed/memory_gib', float('nan')):.1f} GiB.\n"
    )


def main() -> None:
    """Print the tables, and write them where asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="dit4sr", help="a name of configs/model (default dit4sr)")
    parser.add_argument("--backbone", help="a name of configs/backbone (default nano; on a GPU sd35_medium)")
    parser.add_argument("--batch", type=int, help="crops a step (default: the recipe's; on a GPU 8)")
    parser.add_argument("--peak", default="auto", help="FLOP/s that MFU refers to (default: as trainer.peak_flops)")
    parser.add_argument("--no-compile", action="store_true", help="leave torch.compile out")
    parser.add_argument("--workers", type=int, default=8, help="data workers of the training by Lightning (default 8)")
    parser.add_argument("--steps", type=int, default=30, help="of the training by Lightning or under --profile")
    parser.add_argument("--profile", action="store_true", help="where the nano training's and sampling's time goes")
    parser.add_argument("--trace", type=Path, metavar="FILE", help="write a chrome trace of three steps (.json.gz too)")
    add_arguments(parser)
    arguments = parser.parse_args()
    on_gpu = arguments.device.startswith("cuda")
    arguments.backbone = arguments.backbone or ("sd35_medium" if on_gpu else "nano")

    report = Report("profile" if arguments.profile else "training", arguments.device, arguments.note)
    if arguments.profile:
        from profiling import profile_sampling, profile_training

        profile_training(report, arguments.steps)
        profile_sampling(report)
    else:
        fastest = steps_table(report, arguments)
        if arguments.trace:
            trace(report, fastest, arguments.trace)
        if on_gpu:
            del fastest
            torch._dynamo.reset()  # which keeps what it compiled, and so the network
            gc.collect()
            torch.cuda.empty_cache()
            end_to_end(report, arguments, arguments.steps)
    report.write(arguments.out)


if __name__ == "__main__":
    main()

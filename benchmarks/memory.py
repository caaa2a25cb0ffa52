"""Measure how the memory of a restoration grows with the image: ``python benchmarks/memory.py --help``.

Every size runs in a process of its own: the peak of its resident memory, less what it held with the model loaded.
``--full`` predicts what the full-size models need on a GPU instead, from the meta device; with ``--device cuda`` random
ones of that size are measured there.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from measuring import Report, add_arguments, choose_device, table

STEPS = 2
UPSCALE = 4


def resident(field: str) -> int:
    """Bytes that /proc/self/status names: VmRSS now, VmHWM at the most."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field):
            return int(line.split()[1]) * 1024
    raise SystemExit("no /proc/self/status: memory is measured on Linux alone")


def nano() -> Any:
    """The embedded default with random weights: BlockDCT at ×4, tiles of 12 latent pixels."""
    from omegaconf import OmegaConf

    from dit4sr.autoencoders import build_autoencoder
    from dit4sr.config import config_dir
    from dit4sr.models.build import build_network
    from dit4sr.prompts import build_text_encoder

    configs = config_dir()
    backbone: Any = OmegaConf.to_container(OmegaConf.load(configs / "backbone" / "nano.yaml"))
    model: Any = OmegaConf.to_container(OmegaConf.load(configs / "model" / "dit4sr.yaml"))
    network = build_network(model, backbone, seed=0).eval()
    autoencoder = build_autoencoder(backbone["autoencoder"], None)
    return network, autoencoder, build_text_encoder(backbone["text_encoder"], None), backbone["tile"]


def kl() -> Any:
    """A narrow SD3: 16 latent channels, an AutoencoderKL at ×8 with attention, tiles of 32 latent pixels."""
    from diffusers import AutoencoderKL

    from dit4sr.autoencoders import DiffusersAutoencoder
    from dit4sr.models import DiT4SRTransformer2DModel
    from dit4sr.prompts import HashingTextEncoder

    network = DiT4SRTransformer2DModel(
        num_layers=2,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=32,
        caption_projection_dim=32,
        pooled_projection_dim=32,
        pos_embed_max_size=32,
        dual_attention_layers=(0,),
        qk_norm="rms_norm",
    ).eval()
    vae = AutoencoderKL(
        block_out_channels=(8, 8, 16, 16),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=1,
        latent_channels=16,
        norm_num_groups=4,
        scaling_factor=1.5305,
        shift_factor=0.0609,
        use_quant_conv=False,
        use_post_quant_conv=False,
    )
    return network, DiffusersAutoencoder(vae), HashingTextEncoder(8, 32, 32), {"size": 32, "overlap": 12}


MODELS = {"nano": nano, "kl": kl}


def measure(model: str, side: int, colour: str, guidance: float) -> dict[str, float]:
    """Restore one image to ``side`` pixels a side and say what memory that took."""
    import numpy as np
    import torch

    from dit4sr.restoration.restorer import Restorer, TileSettings
    from dit4sr.restoration.sampler_settings import SamplerSettings

    torch.set_num_threads(1)
    torch.manual_seed(0)
    network, autoencoder, text_encoder, tile = MODELS[model]()
    sampler = SamplerSettings(
        steps=STEPS,
        shift=3.0,
        guidance=guidance,
        start="noise",
        first_sigma=1.0,
        negative_prompt="",
        positive_suffix="",
        tile_batch=16,
        colour=colour,
    )
    patch = network.config.patch_size
    restorer = Restorer(network, autoencoder, text_encoder, sampler, TileSettings(**tile), torch.device("cpu"), patch)
    lq = np.random.default_rng(0).integers(0, 256, (side // UPSCALE, side // UPSCALE, 3), dtype=np.uint8)
    Path("/proc/self/clear_refs").write_text("5")  # the peak from here on
    before, start = resident("VmRSS"), time.perf_counter()
    restored = restorer.restore(lq, "", seed=0, upscale=UPSCALE)
    seconds = time.perf_counter() - start
    assert restored.shape == (side, side, 3)
    return {"baseline": before, "extra": resident("VmHWM") - before, "seconds": seconds}


def main() -> None:
    """Print a table in Markdown: one row a size, one pair of columns a model."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sizes", type=int, nargs="*", default=[512, 1024, 2048, 4096], help="sides of the result")
    parser.add_argument("--models", nargs="*", choices=MODELS, default=list(MODELS))
    parser.add_argument("--colour", default="wavelet", help="none, adain or wavelet (default wavelet)")
    parser.add_argument("--guidance", type=float, default=2.0, help="1 halves the time (default 2)")
    parser.add_argument("--full", action="store_true", help="the full size: predicted, or on a GPU measured")
    parser.add_argument("--one", nargs=2, metavar=("MODEL", "SIZE"), help=argparse.SUPPRESS)
    add_arguments(parser, rounds=1)
    arguments = parser.parse_args()
    if arguments.one:
        model, side = arguments.one
        print(json.dumps(measure(model, int(side), arguments.colour, arguments.guidance)))
        return
    choose_device(parser, arguments.device)
    report = Report("memory", arguments.device, arguments.note)
    if arguments.full:
        full_size(report)
    else:
        by_size(report, arguments)
    report.write(arguments.out)


def full_size(report: Report) -> None:
    """What the published size needs: by arithmetic, or on a GPU by measuring a sampling step with random weights."""
    from predicted import measured, predict

    for model in ("dit4sr", "sd3_controlnet"):
        report.say(f"\n## {model}\n")
        if report.device.startswith("cuda"):
            report.say(f"Measured: {measured(model, report.device) / 1e9:.2f} GB for weights and a guided step.")
        else:
            predict(report, model)


def by_size(report: Report, arguments: argparse.Namespace) -> None:
    """Restorations of images of several sizes, each in a process of its own."""
    report.say(
        f"One image, ×{UPSCALE}, {STEPS} steps, guidance {arguments.guidance:g}, colour {arguments.colour}; "
        "peak resident memory less the loaded model's\n"
    )
    first: dict[str, float] = {}
    rows = []
    for side in arguments.sizes:
        cells: list[str] = [f"{side}²"]
        for model in arguments.models:
            command = [sys.executable, __file__, "--one", model, str(side)]
            command += ["--colour", arguments.colour, "--guidance", str(arguments.guidance)]
            done = subprocess.run(command, capture_output=True, text=True)
            if done.returncode:
                sys.exit(f"{model} at {side}: {done.stderr.strip().splitlines()[-1]}")
            row = json.loads(done.stdout.splitlines()[-1])
            first.setdefault(model, row["extra"])
            pixels = side**2 - arguments.sizes[0] ** 2
            growth = f"{(row['extra'] - first[model]) / pixels:.1f}" if pixels else "–"
            cells += [f"{row['extra'] / 1e6:.0f}", growth, f"{row['seconds']:.0f}"]
        rows.append(cells)
    heads = [head for m in arguments.models for head in (f"{m}: MB", "bytes a pixel more than the first", "s")]
    report.say(table(rows, ["result", *heads]))


if __name__ == "__main__":
    main()

"""Time a training step and a forward pass of each model: ``python benchmarks/networks.py --help``."""

from __future__ import annotations

import argparse
import platform
import statistics
import time
from collections.abc import Callable

import torch
from omegaconf import OmegaConf

from dit4sr.config import config_dir
from dit4sr.flow import interpolate, latent_loss
from dit4sr.models.build import build_network


def median_ms(action: Callable[[], object], repeats: int, device: str) -> float:
    """Median milliseconds of ``action`` over ``repeats`` calls, after two to warm up."""
    times = []
    for i in range(repeats + 2):
        start = time.perf_counter()
        action()
        if device != "cpu":
            torch.cuda.synchronize()
        if i >= 2:
            times.append(1000 * (time.perf_counter() - start))
    return statistics.median(times)


def main() -> None:
    """Print one row a model."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--backbone", default="nano", help="a name of configs/backbone (default nano)")
    parser.add_argument("--models", nargs="*", help="names of configs/model (default: all)")
    parser.add_argument("--batch", type=int, default=16, help="crops a step (default 16)")
    parser.add_argument("--repeats", type=int, default=10, help="timed calls (default 10)")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    arguments = parser.parse_args()

    configs = config_dir()
    backbone = OmegaConf.load(configs / "backbone" / f"{arguments.backbone}.yaml")
    names = arguments.models or sorted(p.stem for p in (configs / "model").glob("*.yaml"))
    fields, text = backbone.transformer, backbone.text_encoder
    device, batch = arguments.device, arguments.batch
    side = backbone.crop // (4 if backbone.autoencoder.name == "block_dct" else 8)
    z, eps, lr = torch.randn(3, batch, fields.in_channels, side, side, device=device).unbind(0)
    sigma = torch.rand(batch, device=device)
    tokens = torch.randn(batch, text.tokens, text.width, device=device)
    pooled = torch.randn(batch, text.pooled_width, device=device)

    print(
        f"{platform.processor() or platform.machine()}, {torch.get_num_threads()} threads, "
        f"torch {torch.__version__}, {device}; backbone {arguments.backbone}, batch {batch}, "
        f"latents {side}×{side}"
    )
    print(f"{'model':<20} {'trainable':>12} {'step ms':>9} {'forward ms':>11}")
    for name in names:
        model = OmegaConf.load(configs / "model" / f"{name}.yaml")
        network = build_network(model, backbone, seed=0).to(device)
        trainable = [p for p in network.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(trainable, lr=1e-4)
        inputs = (interpolate(z, eps, sigma), lr, 1000 * sigma, tokens, pooled)

        def step(network=network, optimizer=optimizer, inputs=inputs) -> None:  # type: ignore[no-untyped-def]
            latent_loss(network(*inputs, return_dict=False), z, eps, sigma).backward()
            optimizer.step()
            optimizer.zero_grad()

        def forward(network=network, inputs=inputs) -> None:  # type: ignore[no-untyped-def]
            with torch.no_grad():
                network(*inputs, return_dict=False)

        row = median_ms(step, arguments.repeats, device), median_ms(forward, arguments.repeats, device)
        print(f"{name:<20} {sum(p.numel() for p in trainable):>12,} {row[0]:>9.1f} {row[1]:>11.1f}")


if __name__ == "__main__":
    main()

"""Seconds and peak memory of restoring one image with a network of random weights."""

from __future__ import annotations

import contextlib
import platform
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import SD3Transformer2DModel

from dit4sr.models.base import as_arguments
from dit4sr.models.build import Network, from_base
from dit4sr.models.flops import network_inputs, scale_of
from dit4sr.models.initialisation import initialise_base
from dit4sr.sampling import TiledNetwork, sample_euler
from dit4sr.studies.counting import latent_side, random_autoencoder


@dataclass(frozen=True)
class Timing:
    """What one image took.

    Attributes:
        seconds: of the image: encoding, all steps, decoding.
        timed_steps: steps that were timed; where they are fewer than the image has, the rest is extrapolated.
        steps: of the image.
        peak_mib: highest memory in use while restoring, in MiB: on a GPU what torch allocated (the weights
            included), on the CPU the process's resident memory (Python and its libraries included); None where
            the system does not say.
    """

    seconds: float
    timed_steps: int
    steps: int
    peak_mib: float | None


def device_name(device: torch.device) -> str:
    """The device in words, for the table."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    model = platform.processor() or platform.machine()
    with contextlib.suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
        model = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), model)
    return f"{model}, {torch.get_num_threads()} thread{'s' if torch.get_num_threads() > 1 else ''}"


@torch.no_grad()
def random_network(model: Mapping[str, Any], backbone: Mapping[str, Any], device: torch.device) -> Network:
    """The network with random weights, in evaluation mode; bfloat16 on a GPU, as it is sampled there."""
    fields = as_arguments(backbone["transformer"])
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    if device.type == "cuda":
        # No weights of a full-size network in the CPU's memory: made where they are needed.
        with torch.device(device):
            base = SD3Transformer2DModel(**fields).to(dtype)
    else:
        base = initialise_base(SD3Transformer2DModel(**fields), seed=0)
    network = from_base(model, base, pretrained=False)
    return network.eval().requires_grad_(False)


@torch.inference_mode()
def time_image(
    model: Mapping[str, Any],
    backbone: Mapping[str, Any],
    device: torch.device,
    *,
    target: int,
    steps: int,
    timed_steps: int,
    guidance: float,
    tile_batch: int,
) -> Timing:
    """Restore one image of ``target`` pixels a side as the restorer does, and time it.

    One step on one tile is run before, to warm up.

    Args:
        model, backbone: configs/model and configs/backbone.
        device: where to compute.
        target: side of the result in pixels.
        steps: of the image.
        timed_steps: so many steps are run; with fewer than ``steps`` the seconds of the rest are extrapolated.
        guidance: w; 1 halves the work.
        tile_batch: tiles of one forward pass.
    """
    network = random_network(model, backbone, device)
    autoencoder = random_autoencoder(backbone, device)
    if device.type == "cuda" and hasattr(autoencoder, "model"):
        autoencoder.to(torch.bfloat16)
    tile, side = backbone["tile"], latent_side(backbone, target)
    _, _, _, tokens, pooled = network_inputs(backbone, 1, device=device)
    tiled = TiledNetwork(network, tile["size"], tile["overlap"], tile_batch)
    pixels = side * scale_of(backbone)  # smaller images are padded to a tile
    image = torch.rand(1, 3, pixels, pixels, device=device)

    def restore(latent_side: int, number: int) -> float:
        """Seconds of the steps."""
        noise = torch.randn(1, autoencoder.channels, latent_side, latent_side, device=device)
        wait(device)
        began = time.perf_counter()
        sample_euler(
            tiled,
            torch.zeros_like(noise),
            encoder_hidden_states=tokens,
            pooled_projections=pooled,
            negative_encoder_hidden_states=tokens,
            negative_pooled_projections=pooled,
            steps=number,
            guidance=guidance,
            noise=noise,
        )
        wait(device)
        return time.perf_counter() - began

    restore(min(tile["size"], side), 1)
    reset_peak(device)
    began = time.perf_counter()
    latent = autoencoder.encode(image)
    wait(device)
    coding = time.perf_counter() - began
    stepping = restore(side, timed_steps)
    began = time.perf_counter()
    autoencoder.decode(latent)
    wait(device)
    coding += time.perf_counter() - began
    return Timing(coding + stepping * steps / timed_steps, timed_steps, steps, peak_mib(device))


def wait(device: torch.device) -> None:
    """Wait for what a GPU still computes."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def reset_peak(device: torch.device) -> None:
    """Begin a new peak, where the system lets a process do so."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return
    with contextlib.suppress(OSError):  # Linux alone has it
        Path("/proc/self/clear_refs").write_text("5")


def peak_mib(device: torch.device) -> float | None:
    """The peak since :func:`reset_peak`, in MiB."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    with contextlib.suppress(OSError, StopIteration):
        lines = Path("/proc/self/status").read_text().splitlines()
        return int(next(line for line in lines if line.startswith("VmHWM")).split()[1]) / 1024
    return None

"""Bytes on a GPU that the full-size model will need, from the meta device: ``python benchmarks/memory.py --full``.

No weights and no GPU are needed: modules of the published sizes are made and run without storage, and the bytes of all
tensors that are alive at once are counted. Attention is counted as the fused kernels have it, without its scores.
What an allocator loses, cuDNN's workspaces and CUDA's own context (about half a gigabyte) come on top.
"""

from __future__ import annotations

import gc
from collections.abc import Callable
from typing import Any

import torch
from configs import named
from measuring import Report, table
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.nn.functional import scaled_dot_product_attention
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from dit4sr.acceleration import AccelerationSettings, accelerate
from dit4sr.acceleration.blocks import is_block_matrix
from dit4sr.models.build import build_on_meta
from dit4sr.models.flops import network_inputs
from dit4sr.prompts.sd3 import WIDE
from dit4sr.prompts.weight_bytes import is_t5_matrix
from dit4sr.quantising import BITS_A_WEIGHT
from dit4sr.sampling import guided_velocity

GB = 1e9
STEPS = 40
"""Of a sampling, whose modulations are computed ahead."""
KINDS = {"int8": "int8_weights", "nf4": "nf4"}
"""configs/acceleration → how it quantises."""


class FusedAttention(TorchFunctionMode):
    """Attention gives its output and nothing else, as the fused kernels do."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is scaled_dot_product_attention:
            query = args[0] if args else (kwargs or {})["query"]
            return torch.empty_like(query)
        return func(*args, **(kwargs or {}))


class LiveBytes(TorchDispatchMode):
    """Bytes of the tensors that operations have made and that are still alive.

    Attributes:
        peak: the most at once.
    """

    def __init__(self) -> None:
        super().__init__()
        self.alive: dict[int, tuple[StorageWeakRef, int]] = {}
        self.peak = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self._note((args, kwargs), made=False)
        result = func(*args, **(kwargs or {}))
        self._note(result, made=True)
        self.alive = {key: entry for key, entry in self.alive.items() if not entry[0].expired()}
        self.peak = max(self.peak, sum(size for _, size in self.alive.values()))
        return result

    def _note(self, tree: Any, *, made: bool) -> None:
        for tensor in tree_leaves(tree):
            if isinstance(tensor, Tensor):
                storage = tensor.untyped_storage()
                ref = StorageWeakRef(storage)
                if ref.cdata not in self.alive or self.alive[ref.cdata][0].expired():
                    self.alive[ref.cdata] = (ref, storage.nbytes() if made else 0)


@torch.no_grad()
def peak_of(action: Callable[[], object]) -> int:
    """Bytes at once of what an action makes."""
    gc.collect()
    with FusedAttention(), LiveBytes() as live:
        action()
    return live.peak


def weights_of(module: nn.Module) -> int:
    """Bytes of parameters and buffers."""
    return sum(tensor.nbytes for tensor in [*module.parameters(), *module.buffers()])


def saved_by(module: nn.Module, kind: str, chosen: Callable[[str, nn.Module], bool]) -> int:
    """Bytes that quantising some of a module's matrices saves."""
    matrices = [m.weight for name, m in module.named_modules() if chosen(name, m)]
    return int(sum(w.nbytes - w.numel() * BITS_A_WEIGHT[kind] / 8 for w in matrices))  # type: ignore[operator,union-attr,misc]


def text_encoders(prompts: int, length: int, dtype: torch.dtype) -> dict[str, tuple[int, int]]:
    """Encoder → bytes of its weights, and of what it computes for so many prompts.

    In float16 T5's output maps ``wo`` stay float32, as transformers has them.
    """
    from transformers import CLIPTextConfig, CLIPTextModelWithProjection, T5Config, T5EncoderModel

    def clip(width: int, layers: int, heads: int, act: str) -> Any:
        config = CLIPTextConfig(
            hidden_size=width, num_hidden_layers=layers, num_attention_heads=heads, intermediate_size=4 * width,
            projection_dim=width, hidden_act=act,
        )  # fmt: skip
        return CLIPTextModelWithProjection(config)

    makers: dict[str, Callable[[], Any]] = {
        "CLIP-L": lambda: clip(768, 12, 12, "quick_gelu"),
        "OpenCLIP-G": lambda: clip(1280, 32, 20, "gelu"),
        "T5-XXL": lambda: T5EncoderModel(
            T5Config(d_model=4096, d_ff=10240, num_layers=24, num_heads=64, d_kv=64, feed_forward_proj="gated-gelu")
        ),
    }
    found = {}
    for name, make in makers.items():
        with torch.device("meta"):
            model = make().to(dtype).eval()
            if dtype == torch.float16:
                for module in model.modules():
                    if hasattr(module, WIDE):
                        getattr(module, WIDE).float()
            ids = torch.zeros(prompts, length, dtype=torch.long)
        found[name] = weights_of(model), peak_of(lambda model=model, ids=ids: model(ids))  # type: ignore[misc]
        if name == "T5-XXL":
            for kind in KINDS.values():
                small = found[name][0] - saved_by(model, kind, is_matrix_of_t5)
                found[quantised_t5(kind)] = small, found[name][1]
    return found


def is_matrix_of_t5(name: str, module: nn.Module) -> bool:
    """What ``prompt.quantise`` chooses."""
    return isinstance(module, nn.Linear) and is_t5_matrix(name)


def quantised_t5(kind: str) -> str:
    """The name of a row."""
    return f"T5-XXL, prompt.quantise={kind}"


def full_network(model: str, batch: int, settings: str) -> tuple[nn.Module, int]:
    """The accelerated network in bfloat16, and the bytes of a guided sampling of ``batch`` images of 512×512."""
    config, backbone = named("model", model), named("backbone", "sd35_medium")
    network = accelerate(
        build_on_meta(config, backbone).eval().to(torch.bfloat16), AccelerationSettings.named(settings)
    )
    z, lr, timestep, tokens, pooled = network_inputs(backbone, 64, batch, "meta")
    conditions = timestep, tokens, pooled, tokens, pooled
    modulations = 2 * batch * STEPS * sum(sum(trunk.modulations.sizes) for trunk in network.trunks)
    return network, torch.bfloat16.itemsize * modulations + peak_of(
        lambda: guided_velocity(network, z, lr, *conditions, 8.0)
    )


def autoencoder(tile: int, at_once: int) -> tuple[int, int]:
    """Bytes of the autoencoder of Stable Diffusion 3 in float32, and of decoding latent tiles."""
    from diffusers import AutoencoderKL

    with torch.device("meta"):
        vae = AutoencoderKL(
            block_out_channels=(128, 256, 512, 512),
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            layers_per_block=2,
            latent_channels=16,
            use_quant_conv=False,
            use_post_quant_conv=False,
        ).eval()
        latent = torch.zeros(at_once, 16, tile, tile)
        image = torch.zeros(at_once, 3, 8 * tile, 8 * tile)
    computing = max(peak_of(lambda: vae.decode(latent)), peak_of(lambda: vae.encode(image)))
    return weights_of(vae), computing


def predict(report: Report, model: str, batch: int = 1, prompts: int = 2) -> dict[str, float]:
    """Print what is in memory when, and the peaks; return these in GB.

    Args:
        report: gets the tables.
        model: a name of configs/model.
        batch: images at once.
        prompts: embedded together: the image's and the negative one.
    """
    by_type = {dtype: text_encoders(prompts, 77, dtype) for dtype in (torch.bfloat16, torch.float16)}
    network, step = full_network(model, batch, "exact")
    vae, coding = autoencoder(64, batch)
    weights = weights_of(network)
    found = dict(by_type[torch.bfloat16])
    found[f"T5-XXL, float16, its {WIDE} float32"] = by_type[torch.float16]["T5-XXL"]
    found[f"{model}, bfloat16, {STEPS} guided steps of {batch} image of 512×512"] = weights, step
    found["autoencoder, float32, a tile of 512×512"] = vae, coding
    rows = [[name, f"{w / GB:.2f}", f"{c / GB:.2f}"] for name, (w, c) in found.items()]
    report.say("Predicted from the meta device, of the full size, in GB (10⁹ bytes):\n")
    report.say(table(rows, ["part", "weights", "what it computes, at the peak"]) + "\n")

    restoring = vae + max(step, coding)
    # Quantised where it runs: beside the autoencoder the whole network is there first.
    needs = {"": weights + restoring}
    peaks = {"embeddings given (`prompt=cached`, or prompt_embeds)": needs[""]}
    for setting, kind in KINDS.items():
        small = weights - saved_by(network, kind, is_block_matrix)
        needs[setting] = max(vae + weights, small + restoring)
        peaks[f"embeddings given, `acceleration={setting}`"] = needs[setting]
        peaks[f"embeddings given, `acceleration={setting}`, once loaded"] = small + restoring
    for dtype, encoders in by_type.items():
        given = f"text encoders in {str(dtype).removeprefix('torch.')}"
        plain = {name: encoders[name] for name in ("CLIP-L", "OpenCLIP-G", "T5-XXL")}
        peaks[f"{given}, beside the network"] = weights + restoring + sum(w for w, _ in plain.values())
        one_by_one = max(w + c for w, c in plain.values())
        peaks[f"{given}, whole pipeline, `text_encoder_device=offload`"] = max(one_by_one, needs[""])
    clips = [found["CLIP-L"], found["OpenCLIP-G"]]
    for setting, kind in KINDS.items():
        encoders_small = [*clips, found[quantised_t5(kind)]]
        one_by_one = max(w + c for w, c in encoders_small)
        both = f"`prompt.quantise={kind} acceleration={setting}`"
        peaks[f"whole pipeline, {both}, `text_encoder_device=offload`"] = max(one_by_one, needs[setting])
        peaks[f"whole pipeline, {both}, all beside each other"] = needs[setting] + sum(w for w, _ in encoders_small)
    report.say(table([[name, f"{peak / GB:.1f}"] for name, peak in peaks.items()], ["restoring", "peak, GB"]))
    return {name: peak / GB for name, peak in peaks.items()}


@torch.inference_mode()
def measured(model: str, device: str) -> int:
    """Bytes that torch has allocated at the most on a GPU: a random network of the full size, and two guided steps."""
    from dit4sr.sampling import sample_euler
    from dit4sr.studies.timing import random_network

    config, backbone = named("model", model), named("backbone", "sd35_medium")
    gc.collect()
    torch.cuda.empty_cache()
    with torch.inference_mode(False):
        network = accelerate(
            random_network(config, backbone, torch.device(device)), AccelerationSettings.named("exact")
        )
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    _, lr, _, tokens, pooled = network_inputs(backbone, 64, 1, device)
    sample_euler(
        network,
        lr,
        encoder_hidden_states=tokens,
        pooled_projections=pooled,
        negative_encoder_hidden_states=tokens,
        negative_pooled_projections=pooled,
        steps=2,
    )
    return torch.cuda.max_memory_allocated()

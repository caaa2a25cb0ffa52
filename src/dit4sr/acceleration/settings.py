"""configs/acceleration: how a network is made faster for inference, exactly or approximately."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal, Self, get_args

from dit4sr.errors import UserError
from dit4sr.pretrained import HUB_ID
from dit4sr.values import flag, number

Compile = Literal["none", "blocks", "step"]
Quantise = Literal["none", "int8_weights", "int8", "fp8", "nf4"]
DepthWise = Literal["auto", "conv", "shifts", "kernel"]
Attention = Literal["auto", "cudnn", "flash", "efficient", "math"]
Precision = Literal["float32", "bfloat16", "float16"]


@dataclass(frozen=True, kw_only=True)
class AccelerationSettings:
    """What is done to a network before it samples. The first seven are exact up to the order of rounding.

    Args:
        fold: P_q W_q, P_k W_k and P_v W_v as one matrix each.
        fuse: W_q, W_k and W_v (and the folded ones, and the text's) in one product; and on a GPU, in half precision,
            the MLP's GELU at the end of its product.
        batch_streams: the products of X and L in one batched product (needs ``fold``; fuses too).
        cache: what no step changes is computed once a sampling: the text's projection, the LR latent's embedding,
            and every block's modulations for the whole schedule.
        depth_wise: how the injection's 3×3 convolution is computed: ``conv``, the library's; nine shifted products
            (``shifts``), which a compiler fuses with what is around them; a ``kernel`` of ours that adds it to h_X as
            well (GPU, Triton); ``auto``: compiled, the kernel on a GPU and shifts elsewhere, else conv.
        attention: which of torch's kernels is asked for first; ``auto``: the fastest on the GPU at hand, torch's own
            choice elsewhere.
        channels_last: the autoencoder's convolutions on channels-last images.
        compile: ``blocks``: each kind of block once; ``step``: the whole network.
        compile_mode: of torch.compile; reduce-overhead and max-autotune record CUDA graphs of their own.
        compile_options: further options of torch.compile by their names, such as ``{combo_kernels: true}``; with
            ``compile_mode`` default.
        cuda_graphs: a whole step is recorded as a CUDA graph, compiled or not, and replayed.
        quantise: approximate: int8_weights (weights alone), int8 (activations too), fp8 (Hopper GPUs and newer),
            nf4 (4 bits, by bitsandbytes).
        reuse_below: approximate: where the first block's output has changed by less than this share since the blocks
            were last run, their change is used again; null: never.
        network_dtype: approximate: the type of the network's weights, in which it computes; null leaves it.
        autoencoder_dtype: approximate: what the autoencoder computes in; null leaves it.
        tiny_vae: approximate: folder or hub id of an AutoencoderTiny that decodes in the autoencoder's place.
    """

    fold: bool
    fuse: bool
    batch_streams: bool
    cache: bool
    depth_wise: DepthWise
    attention: Attention
    channels_last: bool
    compile: Compile
    compile_mode: str
    compile_options: Mapping[str, Any]
    cuda_graphs: bool
    quantise: Quantise
    reuse_below: float | None
    network_dtype: Precision | None
    autoencoder_dtype: Precision | None
    tiny_vae: str | None

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Self:
        """Build the settings from a config group.

        Raises:
            UserError: for missing or unknown fields, or values that are none.
        """
        expected = {f.name for f in fields(cls)} | {"name"}
        if wrong := sorted(expected ^ set(config)):
            raise UserError(
                f"acceleration: missing or unknown {', '.join(wrong)}; it has {', '.join(sorted(expected))}"
            )
        stated = {f"acceleration.{name}": value for name, value in config.items()}
        for name in ("fold", "fuse", "batch_streams", "cache", "channels_last", "cuda_graphs"):
            flag(stated, f"acceleration.{name}")
        choices = (
            ("depth_wise", DepthWise),
            ("attention", Attention),
            ("compile", Compile),
            ("quantise", Quantise),
            ("network_dtype", Precision),
            ("autoencoder_dtype", Precision),
        )
        for name, kind in choices:
            if config[name] not in get_args(kind) and not (kind is Precision and config[name] is None):
                raise UserError(f"acceleration.{name}={config[name]!r}: choose one of {', '.join(get_args(kind))}")
        if config["compile_mode"] not in COMPILE_MODES:
            raise UserError(
                f"acceleration.compile_mode={config['compile_mode']!r}: choose one of {', '.join(COMPILE_MODES)}"
            )
        if not isinstance(config["compile_options"], Mapping):
            raise UserError(
                f"acceleration.compile_options={config['compile_options']!r}: give names and values, such as "
                "+acceleration.compile_options.combo_kernels=true"
            )
        if config["compile_options"] and config["compile_mode"] != "default":
            raise UserError(
                "acceleration.compile_options needs acceleration.compile_mode=default: a mode is options too"
            )
        tiny = config["tiny_vae"]
        if tiny is not None and not Path(str(tiny)).expanduser().is_dir() and not HUB_ID.fullmatch(str(tiny)):
            raise UserError(f"acceleration.tiny_vae={tiny}: there is no such folder, and a hub id is organisation/name")
        if config["batch_streams"] and not config["fold"]:
            raise UserError("acceleration.batch_streams=true needs acceleration.fold=true: unfolded, X and L share W")
        if config["batch_streams"] and config["quantise"] != "none":
            raise UserError(
                "acceleration.quantise needs acceleration.batch_streams=false: a batched product is not quantised"
            )
        if config["reuse_below"] is not None and number(stated, "acceleration.reuse_below") <= 0:
            raise UserError(f"acceleration.reuse_below={config['reuse_below']}: give a share above 0, or null")
        whole = config["compile"] == "step" or config["cuda_graphs"]
        if config["reuse_below"] is not None and (whole or not config["cache"]):
            raise UserError(
                "acceleration.reuse_below decides at each step: it needs acceleration.cache=true, "
                "acceleration.compile=none or blocks, and acceleration.cuda_graphs=false"
            )
        if config["cuda_graphs"] and config["compile_mode"] in ("reduce-overhead", "max-autotune"):
            raise UserError(
                f"acceleration.compile_mode={config['compile_mode']} records CUDA graphs itself: use it without "
                "acceleration.cuda_graphs, or compile_mode=default or max-autotune-no-cudagraphs"
            )
        if config["compile"] == "blocks" and config["compile_mode"] in ("reduce-overhead", "max-autotune"):
            raise UserError(
                f"acceleration.compile_mode={config['compile_mode']} records a whole step as a CUDA graph: use "
                "compile=step, or compile_mode=default or max-autotune-no-cudagraphs"
            )
        return cls(**{name: value for name, value in config.items() if name != "name"})

    @classmethod
    def named(cls, name: str) -> Self:
        """The settings of configs/acceleration/<name>.yaml.

        Raises:
            UserError: where there is none of that name.
        """
        from dit4sr.config import config_dir

        files = {path.stem: path for path in sorted((config_dir() / "acceleration").glob("*.yaml"))}
        if name not in files:
            raise UserError(f"acceleration={name}: choose one of {', '.join(files)}")
        return cls.from_config(_composed(name, files))

    @property
    def changes_network(self) -> bool:
        """Whether any of it concerns the network (and not the autoencoder alone)."""
        plain = self.compile == "none" and self.quantise == "none" and self.reuse_below is None
        arranged = self.fold or self.fuse or self.cache or self.cuda_graphs or self.depth_wise != "conv"
        return arranged or not plain or self.attention != "auto" or self.network_dtype is not None

    @property
    def approximate(self) -> list[str]:
        """The switched-on settings by which results change beyond rounding."""
        approximations: dict[str, Any] = {
            "quantise": self.quantise != "none",
            "reuse_below": self.reuse_below,
            "network_dtype": self.network_dtype,
            "autoencoder_dtype": self.autoencoder_dtype,
            "tiny_vae": self.tiny_vae,
        }
        return [name for name, on in approximations.items() if on]


def _composed(name: str, files: Mapping[str, Path]) -> dict[str, Any]:
    """A config of the group with those that its ``defaults`` name beneath it, as Hydra composes them."""
    from omegaconf import OmegaConf

    own: dict[str, Any] = OmegaConf.to_container(OmegaConf.load(files[name]))  # type: ignore[assignment]
    beneath: dict[str, Any] = {}
    for base in own.pop("defaults", []):
        beneath |= {} if base == "_self_" else _composed(base, files)
    return beneath | own


COMPILE_MODES = ("default", "reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs")
"""Modes of torch.compile."""

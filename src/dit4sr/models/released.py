"""Networks from folders in diffusers' layout: the authors' released weights, and what this package saves itself."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, Literal

import torch
from diffusers import SD3Transformer2DModel

from dit4sr.errors import UserError
from dit4sr.models.base import as_arguments, assign, check_tensors, fields_of, stored_dtype
from dit4sr.models.build import Network
from dit4sr.models.controlnet import SD3ControlNet
from dit4sr.models.dit4sr import DiT4SRTransformer2DModel
from dit4sr.models.spec import SPEC_PREFIX, LRStreamSpec
from dit4sr.pretrained import read_config, weight_files
from dit4sr.tensor_files import StoredTensor, read_headers, read_tensors

RELEASED = SD3Transformer2DModel.__name__
"""The class that the released config.json names: they are an SD3 transformer's fields and more weights."""

OURS: dict[str, type[Any]] = {c.__name__: c for c in (DiT4SRTransformer2DModel, SD3ControlNet)}

DEAD = re.compile(
    r"(?P<attention>transformer_blocks\.\d+\.attn2)\."
    r"((add_[qkv]_proj|to_add_out)\.(weight|bias)|norm_added_[qk]\.weight)"
)
"""Text projections of the second attention, which takes no text: the released files carry them, nothing reads them."""

KeySource = Literal["lr", "noise"]


def transformer_folder(folder: str | Path) -> Path:
    """The folder of the network itself: ``transformer/`` inside, or the folder given.

    Raises:
        UserError: where neither has a config.json.
    """
    given = Path(folder).expanduser()
    for candidate in (given / "transformer", given):
        if (candidate / "config.json").is_file():
            return candidate
    what = "has no transformer/config.json" if given.is_dir() else "is no folder here"
    raise UserError(
        f"weights={given} {what}: give a folder with transformer/config.json and "
        "transformer/diffusion_pytorch_model.safetensors, or that transformer folder itself"
    )


def load_released(
    folder: str | Path,
    key_source: KeySource | None = None,
    *,
    injection_scale: float = 1.0,
    dtype: torch.dtype | None = None,
    device: torch.device | str = "cpu",
) -> DiT4SRTransformer2DModel:
    """The full DiT4SR transformer from a folder: a released one, or one that ``save_pretrained`` wrote.

    Strict: the dead text projections of ``attn2`` are dropped, and any other key missing or unexpected is refused.

    Args:
        folder: with ``transformer/`` (config.json and safetensors, sharded or not), or that folder itself.
        key_source: of released files, which do not say it: ``noise`` for dit4sr_q and dit4sr_f, ``lr`` for
            dit4sr_r1 (see :class:`LRStreamSpec`). Files saved by this package state it.
        injection_scale: s of the LR Injection; the released weights were sampled with 1.2.
        dtype: of the weights; None is that of the files.
        device: where they go, memory-mapped.

    Returns:
        In evaluation mode, without gradients.

    Raises:
        UserError: in one line: no such folder, damaged files, another network (naming the keys), no key source.
    """
    network = load_network(folder, key_source, dtype=dtype, device=device)
    if not isinstance(network, DiT4SRTransformer2DModel):
        raise UserError(f"{folder} holds a {type(network).__name__}, not a DiT4SR transformer")
    network.lr_injection_scale = injection_scale
    return network


def load_network(
    folder: str | Path,
    key_source: KeySource | None = None,
    *,
    dtype: torch.dtype | None = None,
    device: torch.device | str = "cpu",
) -> Network:
    """Any network of this package from a folder; arguments, result and errors as of :func:`load_released`."""
    folder = transformer_folder(folder)
    config = read_config(folder, [RELEASED, *OURS])
    tensors = read_headers(weight_files(folder))
    if config["_class_name"] == RELEASED:
        if key_source is None:
            raise UserError(
                f"{folder} does not say by which keys it was trained: choose weights_preset=dit4sr_q or dit4sr_f "
                "(the noise stream's keys) or weights_preset=dit4sr_r1 (the LR stream's); in Python "
                "key_source='noise' or 'lr'"
            )
        spec = LRStreamSpec(attention="joint", residual=True, injection="conv", key_source=key_source)
        kind, extra = DiT4SRTransformer2DModel, spec.as_config()
    else:
        kind = OURS[config["_class_name"]]
        extra = {name: value for name, value in config.items() if name.startswith(SPEC_PREFIX)}
        stated = extra.get(f"{SPEC_PREFIX}key_source")
        if key_source is not None and key_source != stated:
            raise UserError(
                f"{folder} states key_source={stated}, the preset says {key_source}: leave out weights_preset"
            )
    try:
        with torch.device("meta"):
            network = kind(**as_arguments(fields_of(config)), **extra)
    except (TypeError, ValueError, ZeroDivisionError, RuntimeError) as error:
        raise UserError(f"{folder / 'config.json'} describes no network ({error}): give another folder") from error
    expected = network.state_dict()
    if config["_class_name"] == RELEASED:
        tensors = without_dead(tensors, expected)
        if not any("_control." in name for name in tensors):
            raise UserError(
                f"{folder} holds a plain SD3 transformer without DiT4SR's control weights: give it as "
                "backbone.pretrained, and the released DiT4SR folder as weights"
            )
    check_tensors(folder, expected, tensors)
    output = "transformer.proj_out.weight" if kind is SD3ControlNet else "proj_out.weight"
    assign(network, read_tensors(tensors, device=device, dtype=dtype or stored_dtype(tensors, output)))
    return network.eval().requires_grad_(False)


def without_dead(tensors: dict[str, StoredTensor], expected: dict[str, torch.Tensor]) -> dict[str, StoredTensor]:
    """The tensors less the dead text projections of those second attentions that the network has."""
    return {
        name: tensor
        for name, tensor in tensors.items()
        if not ((dead := DEAD.fullmatch(name)) and f"{dead['attention']}.to_q.weight" in expected)
    }

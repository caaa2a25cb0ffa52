"""The pretrained base: SD3's transformer from a folder or the hub, its own fields, and its identity."""

from __future__ import annotations

import inspect
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers import SD3Transformer2DModel
from torch import nn

from dit4sr.errors import UserError
from dit4sr.pretrained import component_folder, read_config, weight_files
from dit4sr.tensor_files import StoredTensor, content_hash, read_headers, read_tensors

DEFAULTS: dict[str, Any] = {
    name: parameter.default
    for name, parameter in inspect.signature(SD3Transformer2DModel.__init__).parameters.items()
    if name != "self"
}
"""The fields of an SD3 transformer; where a config.json leaves one out, diffusers' own default counts."""

DTYPES = {"auto": None, "float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
"""Values of ``backbone.dtype``: the type of the frozen base's weights. auto: the files' own, but see the callers."""

STORED_DTYPES = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}
"""Types that weights are read in, as safetensors names them."""


def fields_of(config: Mapping[str, Any]) -> dict[str, Any]:
    """The architecture that a config.json states: plain values, all fields; what SD3 does not know is left out."""
    fields = {name: config.get(name, default) for name, default in DEFAULTS.items()}
    fields["dual_attention_layers"] = list(fields["dual_attention_layers"] or ())
    if fields["out_channels"] is None:
        fields["out_channels"] = fields["in_channels"]
    return fields


def as_arguments(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Fields as the networks' constructors take them."""
    return {**fields, "dual_attention_layers": tuple(fields["dual_attention_layers"])}


def on_meta(fields: Mapping[str, Any], where: object) -> SD3Transformer2DModel:
    """The transformer without storage.

    Raises:
        UserError: for fields that make no network.
    """
    try:
        with torch.device("meta"):
            return SD3Transformer2DModel(**as_arguments(fields))
    except (TypeError, ValueError, ZeroDivisionError, RuntimeError) as error:
        raise UserError(f"{where} does not describe an SD3 transformer ({error}): give another folder") from error


def check_tensors(
    where: object, expected: Mapping[str, torch.Tensor], found: Mapping[str, StoredTensor], shown: int = 8
) -> None:
    """Refuse files unless they hold exactly the tensors that a network has, in its shapes, in floating point.

    Args:
        where: the folder, for the message.
        expected: the network's state.
        found: the files' tensors.
        shown: so many keys of a kind are named.

    Raises:
        UserError: naming the keys.
    """
    shared = [name for name in expected if name in found]
    shapes = [
        f"{n} {list(found[n].shape)} in place of {list(expected[n].shape)}"
        for n in shared
        if found[n].shape != tuple(expected[n].shape)
    ]
    faults = {
        "missing": sorted(set(expected) - set(found)),
        "unexpected": sorted(set(found) - set(expected)),
        "of another shape": shapes,
        "of a type that is not read": [f"{n} {found[n].dtype}" for n in shared if found[n].dtype not in STORED_DTYPES],
    }
    listed = [
        f"{kind} {', '.join(names[:shown])}" + (f" and {len(names) - shown} more" if len(names) > shown else "")
        for kind, names in faults.items()
        if names
    ]
    if listed:
        raise UserError(f"{where} does not hold the weights that its config.json announces: {'; '.join(listed)}")


def stored_dtype(tensors: Mapping[str, StoredTensor], name: str = "proj_out.weight") -> torch.dtype:
    """The type in which a network is stored: that of its output map."""
    return STORED_DTYPES[tensors[name].dtype]


def load_pretrained_base(
    source: str | Path,
    dtype: torch.dtype | None = None,
    device: torch.device | str = "cpu",
    *,
    local_files_only: bool = False,
) -> SD3Transformer2DModel:
    """SD3's transformer from a diffusers folder or a hub id, safetensors only.

    The network is made without storage and takes the files' memory-mapped tensors over, so that RAM never holds a
    second copy. Its fields are those of the folder's own ``transformer/config.json``.

    Args:
        source: a folder with ``transformer/``, or a hub id.
        dtype: of the weights; None keeps that of the files.
        device: where the weights go.
        local_files_only: never ask the hub.

    Returns:
        In evaluation mode, without gradients.

    Raises:
        UserError: where it cannot be had or read, saying what to download and where to put it; for weights of
            another network, naming the keys.
    """
    folder = component_folder(source, "transformer", local_files_only=local_files_only)
    fields = fields_of(read_config(folder, ["SD3Transformer2DModel"]))
    transformer = on_meta(fields, folder / "config.json")
    tensors = read_headers(weight_files(folder))
    check_tensors(folder, transformer.state_dict(), tensors)
    assign(transformer, read_tensors(tensors, device=device, dtype=dtype or stored_dtype(tensors)))
    return transformer.eval().requires_grad_(False)


def assign(network: nn.Module, state: Mapping[str, torch.Tensor]) -> None:
    """Give a network without storage its tensors, all of them, without copying."""
    network.load_state_dict(state, strict=True, assign=True)
    left = [n for n, t in (*network.named_parameters(), *network.named_buffers()) if t.is_meta]
    assert not left, f"without storage: {left}"


def resolve_backbone(backbone: Mapping[str, Any], *, download: bool = True) -> dict[str, Any]:
    """A backbone's config with what a pretrained base says of itself in place of what the config says of it.

    From the base's own config.json files come the transformer's fields and the widths of the text; the tile is
    at most what the positional table covers. Without a pretrained base the config is returned as it is.

    Args:
        backbone: configs/backbone.
        download: ask the hub where the base is no folder, and check that its parts fit together. Without, only
            the transformer of a folder is looked at; else the config's own fields stay.

    Raises:
        UserError: where the base cannot be read, or its parts do not fit together.
    """
    resolved = dict(backbone)
    source = backbone.get("pretrained")
    if not source or not (download or (Path(source).expanduser() / "transformer" / "config.json").is_file()):
        return resolved
    local = bool(backbone.get("local_files_only"))
    folder = component_folder(source, "transformer", local_files_only=local)
    fields = fields_of(read_config(folder, ["SD3Transformer2DModel"]))
    return with_fields(resolved, fields, vae_config(source, backbone, local) if download else None)


def vae_config(source: str | Path, backbone: Mapping[str, Any], local_files_only: bool) -> dict[str, Any] | None:
    """The config.json of the backbone's autoencoder; None where it is another kind, or kept elsewhere."""
    autoencoder = backbone["autoencoder"]
    if autoencoder["name"] != "kl" or autoencoder.get("source"):
        return None
    return read_config(component_folder(source, "vae", local_files_only=local_files_only), ["AutoencoderKL"])


def with_fields(
    backbone: Mapping[str, Any], fields: Mapping[str, Any], vae: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """A backbone's config with these fields of its transformer and all that follows from them.

    Raises:
        UserError: where the autoencoder does not fit the transformer.
    """
    if vae is not None and vae["latent_channels"] != fields["in_channels"]:
        raise UserError(
            f"the transformer takes {fields['in_channels']} latent channels, the vae gives {vae['latent_channels']}: "
            "they are not of one model; download both again"
        )
    most = fields["pos_embed_max_size"] * fields["patch_size"]
    tile = dict(backbone["tile"])
    if tile["size"] > most:
        tile = {"size": most, "overlap": min(tile["overlap"], most // 4)}
    text = {
        **backbone["text_encoder"],
        "width": fields["joint_attention_dim"],
        "pooled_width": fields["pooled_projection_dim"],
    }
    return {**backbone, "transformer": dict(fields), "text_encoder": text, "tile": tile}


def check_crop(crop: int, scale: int, fields: Mapping[str, Any]) -> None:
    """Refuse training crops that are no whole number of tokens, or more than the positional table covers.

    Args:
        crop: side in pixels.
        scale: pixels per latent pixel.
        fields: of the transformer.

    Raises:
        UserError: with a crop that fits.
    """
    token = scale * fields["patch_size"]
    most = fields["pos_embed_max_size"] * token
    if crop % token or not token <= crop <= most:
        raise UserError(
            f"backbone.crop={crop}: with this base a crop is a multiple of {token} px and at most {most} px "
            f"(tokens of {token} px, a positional table of {fields['pos_embed_max_size']} a side); "
            f"set backbone.crop={max(token, min(crop // token * token, most))}"
        )


def base_identity(backbone: Mapping[str, Any]) -> dict[str, Any] | None:
    """Which frozen base a network stands on; None from scratch, where nothing is frozen.

    Returns:
        ``sha256`` of the base's names, types, shapes and bytes (however they are split into files), the number of
        ``tensors`` and ``bytes``, and the ``source`` they were read from.

    Raises:
        UserError: where the base cannot be read.
    """
    source = backbone.get("pretrained")
    if not source:
        return None
    local = bool(backbone.get("local_files_only"))
    tensors = read_headers(weight_files(component_folder(source, "transformer", local_files_only=local)))
    size = sum(tensor.end - tensor.start for tensor in tensors.values())
    return {"sha256": content_hash(tensors), "tensors": len(tensors), "bytes": size, "source": str(source)}


def check_same_base(where: object, saved: Mapping[str, Any] | None, ours: Mapping[str, Any] | None) -> None:
    """Refuse weights that were trained on another base.

    Raises:
        UserError: saying which base is meant.
    """
    if saved is None or ours is None:  # from scratch; or written before identities were kept
        return
    if saved["sha256"] != ours["sha256"]:
        raise UserError(
            f"{where} was trained on another base: its base (then at {saved['source']}) has the hash "
            f"{saved['sha256'][:12]}…, that of {ours['source']} is {ours['sha256'][:12]}…; "
            "set backbone.pretrained to the folder of the base it was trained on"
        )


def dtype_named(name: str | None, choices: Collection[str] = tuple(DTYPES)) -> torch.dtype | None:
    """The torch type of ``backbone.dtype``; None for auto.

    Raises:
        UserError: for another name.
    """
    if name is None:
        return None
    if name not in choices:
        raise UserError(f"backbone.dtype={name!r}: choose one of {', '.join(choices)}")
    return DTYPES[name]

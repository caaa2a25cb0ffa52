"""The released weights: a folder of SD3's class with control weights and dead projections, read strictly."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from parity.reference import velocity
from safetensors.torch import load_file, save_file
from tiny_sd3 import DIT4SR, SPECS, relative_error, tiny_controlnet, tiny_fields, tiny_inputs, tiny_network
from torch import Tensor

from dit4sr.errors import UserError
from dit4sr.models import DiT4SRTransformer2DModel, SD3ControlNet, load_released
from dit4sr.models.released import load_network

WEIGHTS = "diffusion_pytorch_model.safetensors"
SPEC = {"attention": "joint", "residual": True, "injection": "conv"}


def write_released(
    folder: Path, *, sharded: bool = False, dtype: torch.dtype = torch.float32, **changes: Any
) -> dict[str, Tensor]:
    """A folder as the authors released it; the state that it holds, dead projections left out."""
    network = tiny_network(**changes)
    state = {name: value.to(dtype).contiguous() for name, value in network.state_dict().items()}
    dead = {}
    for name in [n for n in state if n.endswith("attn2.to_q.weight")]:
        attention, D = name.removesuffix(".to_q.weight"), state[name].shape[0]
        for part in ("add_q_proj", "add_k_proj", "add_v_proj", "to_add_out"):
            dead[f"{attention}.{part}.weight"] = torch.randn(D, D, dtype=dtype)
            dead[f"{attention}.{part}.bias"] = torch.randn(D, dtype=dtype)
        if f"{attention}.norm_q.weight" in state:
            for part in ("norm_added_q", "norm_added_k"):
                dead[f"{attention}.{part}.weight"] = torch.randn(8, dtype=dtype)
    transformer = folder / "transformer"
    transformer.mkdir(parents=True)
    fields = tiny_fields(**changes)
    # As a later diffusers may write it: fields that this one does not know.
    config = {"_class_name": "SD3Transformer2DModel", "_diffusers_version": "9.9.9", "novelty": 3, **fields}
    (transformer / "config.json").write_text(json.dumps(config))
    everything = state | dead
    if sharded:
        names = sorted(everything)
        parts = [names[:40], names[40:]]
        weight_map = {}
        for number, part in enumerate(parts, 1):
            file = f"diffusion_pytorch_model-{number:05d}-of-00002.safetensors"
            save_file({n: everything[n] for n in part}, transformer / file)
            weight_map |= dict.fromkeys(part, file)
        index = {"metadata": {"total_size": 1}, "weight_map": weight_map}
        (transformer / f"{WEIGHTS}.index.json").write_text(json.dumps(index))
    else:
        save_file(everything, transformer / WEIGHTS)
    return state


@pytest.mark.parametrize("scale", [1.0, 1.2])
@pytest.mark.parametrize("dual", [(), (0, 2)])
@pytest.mark.parametrize("qk_norm", ["rms_norm", None])
@pytest.mark.parametrize("key_source", ["lr", "noise"])
@torch.no_grad()
def test_outputs_equal_the_equations(
    key_source: Any, qk_norm: str | None, dual: tuple[int, ...], scale: float, tmp_path: Path
) -> None:
    changes: dict[str, Any] = {"qk_norm": qk_norm, "dual_attention_layers": dual}
    state = write_released(tmp_path, sharded=scale == 1.2, **changes)
    network = load_released(tmp_path if dual else tmp_path / "transformer", key_source, injection_scale=scale)
    inputs = tiny_inputs(batch=3)
    expected = velocity(
        state, tiny_fields(**changes), {**SPEC, "key_source": key_source},
        inputs.z, inputs.lr, inputs.timestep, inputs.tokens, inputs.pooled, scale,
    )  # fmt: skip
    assert relative_error(inputs.call(network), expected) < 1e-5
    other = velocity(
        state, tiny_fields(**changes), {**SPEC, "key_source": {"lr": "noise", "noise": "lr"}[key_source]},
        inputs.z, inputs.lr, inputs.timestep, inputs.tokens, inputs.pooled, scale,
    )  # fmt: skip
    # The key source matters exactly where there is a qk-norm.
    assert (relative_error(inputs.call(network), other) > 1e-3) == (qk_norm is not None)


def test_all_but_the_dead_projections_is_kept(tmp_path: Path) -> None:
    state = write_released(tmp_path, dtype=torch.bfloat16)
    network = load_released(tmp_path, "noise")
    assert not network.training and not any(p.requires_grad for p in network.parameters())
    loaded = network.state_dict()
    assert set(loaded) == set(state)
    assert all(torch.equal(loaded[n], state[n]) and loaded[n].dtype == torch.bfloat16 for n in state)
    assert any("to_k_control" in n for n in loaded)  # with the noise keys they are unused, but not lost
    with torch.no_grad():
        assert torch.isfinite(tiny_inputs().call(network)).all()
    assert load_released(tmp_path, "lr", dtype=torch.float32).dtype == torch.float32


def edit(folder: Path, change: Any) -> None:
    file = folder / "transformer" / WEIGHTS
    state = load_file(file)
    change(state)
    save_file(state, file)


def drop(name: str) -> Any:
    return lambda state: state.pop(name)


def add(name: str, *shape: int) -> Any:
    return lambda state: state.update({name: torch.zeros(shape)})


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (drop("transformer_blocks.1.attn.to_q_control.bias"), "missing transformer_blocks.1.attn.to_q_control.bias"),
        (drop("transformer_blocks.1.ff.control_conv.weight"), "missing transformer_blocks.1.ff.control_conv.weight"),
        (drop("pos_embed.pos_embed"), "missing pos_embed.pos_embed"),
        (add("transformer_blocks.0.attn2.to_x.weight", 2), "unexpected transformer_blocks.0.attn2.to_x.weight"),
        # Dead only in a second attention: block 1 has none here, and the first attention's are alive.
        (add("transformer_blocks.1.attn2.add_q_proj.bias", 16), "unexpected transformer_blocks.1.attn2.add_q_proj"),
        (drop("transformer_blocks.0.attn.add_q_proj.bias"), "missing transformer_blocks.0.attn.add_q_proj.bias"),
        (add("proj_out.bias", 3), "of another shape proj_out.bias [3] in place of [16]"),
        (lambda state: state.update({"proj_out.bias": torch.zeros(16, dtype=torch.int8)}), "proj_out.bias I8"),
    ],
)
def test_anything_else_is_refused_by_name(change: Any, words: str, tmp_path: Path) -> None:
    write_released(tmp_path)
    edit(tmp_path, change)
    with pytest.raises(UserError, match=re.escape(words)) as refused:
        load_released(tmp_path, "lr")
    assert "\n" not in str(refused.value)


def test_what_is_missing_is_said_in_one_line(tmp_path: Path) -> None:
    write_released(tmp_path)
    with pytest.raises(UserError, match=r"weights_preset=dit4sr_q or dit4sr_f .*dit4sr_r1"):
        load_released(tmp_path)
    with pytest.raises(UserError, match=r"is no folder here: give a folder with transformer/config\.json"):
        load_released(tmp_path / "nowhere", "lr")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"has no transformer/config\.json"):
        load_released(tmp_path / "empty", "lr")
    file = tmp_path / "transformer" / WEIGHTS
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(UserError, match="damaged or incomplete .*download it again"):
        load_released(tmp_path, "lr")
    file.rename(file.with_suffix(".bin"))
    with pytest.raises(UserError, match=r"pickled weights alone \(\.bin\)"):
        load_released(tmp_path, "lr")


def test_a_plain_base_is_no_released_folder(tmp_path: Path) -> None:
    write_released(tmp_path)
    edit(tmp_path, lambda s: [s.pop(n) for n in list(s) if "control" in n])
    with pytest.raises(UserError, match=r"give it as backbone\.pretrained"):
        load_released(tmp_path, "lr")


def test_other_classes_and_broken_configs_are_refused(tmp_path: Path) -> None:
    write_released(tmp_path)
    path = tmp_path / "transformer" / "config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps({**config, "_class_name": "FluxTransformer2DModel"}))
    with pytest.raises(UserError, match="is of class FluxTransformer2DModel, not SD3Transformer2DModel or"):
        load_released(tmp_path, "lr")
    path.write_text(path.read_text()[:-20])
    with pytest.raises(UserError, match=r"config\.json cannot be read as JSON"):
        load_released(tmp_path, "lr")


@pytest.mark.parametrize("variant", SPECS)
@pytest.mark.parametrize("shard", ["10GB", "20KB"])
@torch.no_grad()
def test_our_own_folders_round_trip(variant: str, shard: str, tmp_path: Path) -> None:
    network = tiny_network(SPECS[variant])
    network.save_pretrained(tmp_path, max_shard_size=shard)
    assert (len(list(tmp_path.glob("*.safetensors"))) == 1) == (shard == "10GB")
    inputs = tiny_inputs()
    for loaded in (DiT4SRTransformer2DModel.from_pretrained(tmp_path), load_released(tmp_path)):
        assert loaded.spec == SPECS[variant]
        assert torch.equal(inputs.call(loaded), inputs.call(network))
    with pytest.raises(UserError, match="states key_source"):
        load_released(tmp_path, {"lr": "noise", "noise": "lr"}[SPECS[variant].key_source])  # type: ignore[arg-type]


@torch.no_grad()
def test_the_baseline_and_bf16_round_trip(tmp_path: Path) -> None:
    controlnet = tiny_controlnet()
    controlnet.save_pretrained(tmp_path / "c", max_shard_size="30KB")
    for loaded in (SD3ControlNet.from_pretrained(tmp_path / "c"), load_network(tmp_path / "c")):
        assert torch.equal(tiny_inputs().call(loaded), tiny_inputs().call(controlnet))
    with pytest.raises(UserError, match="holds a SD3ControlNet"):
        load_released(tmp_path / "c")
    half = tiny_network(DIT4SR).to(torch.bfloat16)
    half.save_pretrained(tmp_path / "half")
    again = DiT4SRTransformer2DModel.from_pretrained(tmp_path / "half", torch_dtype=torch.bfloat16)
    assert all(torch.equal(v, half.state_dict()[n]) for n, v in again.state_dict().items())
    assert load_released(tmp_path / "half").dtype == torch.bfloat16


def test_push_to_hub_saves_the_whole_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Inherited; what it uploads is caught at the last call before the network."""
    import huggingface_hub
    from diffusers.utils import hub_utils

    uploaded: dict[str, set[str]] = {}

    def upload(self: Any, folder: str, repo_id: str, **kwargs: Any) -> None:
        uploaded[repo_id] = {path.name for path in Path(folder).iterdir()}

    monkeypatch.setattr(DiT4SRTransformer2DModel, "_upload_folder", upload)
    monkeypatch.setattr(
        hub_utils, "create_repo", lambda repo_id, **_: huggingface_hub.RepoUrl(f"https://huggingface.co/{repo_id}")
    )
    monkeypatch.setattr(hub_utils, "load_or_create_model_card", lambda *_, **__: None)
    monkeypatch.setattr(
        hub_utils, "populate_model_card", lambda *_, **__: type("Card", (), {"save": lambda *_: None})()
    )
    tiny_network().push_to_hub("somebody/dit4sr")
    assert uploaded["somebody/dit4sr"] >= {"config.json", WEIGHTS}

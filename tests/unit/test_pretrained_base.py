"""The pretrained base: its own fields, its files, its identity, and what is said where it cannot be had."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import SD3Transformer2DModel
from safetensors.torch import load_file, save_file
from tiny_checkpoint import compose_verb
from tiny_sd3 import tiny_inputs
from tiny_sd3_folder import LATENT_CHANNELS, POOLED_WIDTH, TEXT_WIDTH, folder_fields, write_tiny_sd3

from dit4sr.autoencoders import build_autoencoder
from dit4sr.errors import UserError
from dit4sr.models import load_pretrained_base
from dit4sr.models.base import base_identity, check_crop, resolve_backbone
from dit4sr.models.build import build_network
from dit4sr.pretrained import component_folder, weight_files

WEIGHTS = "diffusion_pytorch_model.safetensors"
MODELS = {
    "dit4sr": {
        "name": "dit4sr", "network": "dit4sr", "lr_attention": "joint", "lr_residual": True,
        "lr_injection": "conv", "lr_key_source": "lr",
    },
    "sd3_controlnet": {"name": "sd3_controlnet", "network": "sd3_controlnet"},
}  # fmt: skip


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_sd3(tmp_path_factory.mktemp("sd3"))


@pytest.fixture
def copied(base: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(base, tmp_path / "sd3"))


def backbone(folder: Path | str, **changes: Any) -> dict[str, Any]:
    config = compose_verb("train", "backbone=sd35_medium", f"backbone.pretrained={folder}", "out=unused")
    from omegaconf import OmegaConf

    return {**OmegaConf.to_container(config.backbone, resolve=True), **changes}  # type: ignore[dict-item]


def test_it_is_what_diffusers_loads(base: Path) -> None:
    loaded = load_pretrained_base(str(base))
    reference = SD3Transformer2DModel.from_pretrained(base, subfolder="transformer")
    expected, found = reference.state_dict(), loaded.state_dict()
    assert set(expected) == set(found) and all(torch.equal(found[n], expected[n]) for n in expected)
    assert dict(loaded.config)["num_layers"] == 3 and not any(p.requires_grad for p in loaded.parameters())


@pytest.mark.parametrize("stored", [torch.float32, torch.bfloat16])
def test_dtypes(stored: torch.dtype, tmp_path: Path) -> None:
    folder = write_tiny_sd3(tmp_path, dtype=stored)
    assert {p.dtype for p in load_pretrained_base(folder).parameters()} == {stored}
    for wanted in (torch.float32, torch.bfloat16):
        assert {p.dtype for p in load_pretrained_base(folder, wanted).parameters()} == {wanted}


def test_all_fields_are_the_folder_s_own(base: Path) -> None:
    constants = backbone(base)
    resolved = resolve_backbone(constants)
    assert resolved["transformer"] == {**folder_fields(), "dual_attention_layers": [0, 1]}
    assert (resolved["text_encoder"]["width"], resolved["text_encoder"]["pooled_width"]) == (TEXT_WIDTH, POOLED_WIDTH)
    assert constants["transformer"]["num_layers"] == 24  # the config given is left as it is
    autoencoder = build_autoencoder(resolved["autoencoder"], str(base))
    assert (autoencoder.scale, autoencoder.channels) == (4, LATENT_CHANNELS)
    assert (autoencoder.shift_factor, autoencoder.scaling_factor) == (0.0712, 1.31)  # type: ignore[attr-defined]
    # Constants that would make another network change nothing, not even on the way to it.
    network = build_network(MODELS["dit4sr"], constants, seed=0)
    assert network.config.num_attention_heads == 2 and network.config.joint_attention_dim == TEXT_WIDTH


def test_a_tile_is_at_most_what_the_positional_table_covers(tmp_path: Path, base: Path) -> None:
    assert resolve_backbone(backbone(base))["tile"] == {"size": 64, "overlap": 24}
    small = write_tiny_sd3(tmp_path, pos_embed_max_size=10)
    assert resolve_backbone(backbone(small))["tile"] == {"size": 20, "overlap": 5}


def test_crops_that_do_not_fit_are_refused_with_one_that_does() -> None:
    check_crop(256, 4, folder_fields())
    for crop, better in ((512, 256), (100, 96), (4, 8)):
        with pytest.raises(UserError, match=f"set backbone.crop={better}"):
            check_crop(crop, 4, folder_fields())


def test_parts_of_different_models_are_refused(copied: Path) -> None:
    config = copied / "vae" / "config.json"
    config.write_text(config.read_text().replace('"latent_channels": 4', '"latent_channels": 8'))
    with pytest.raises(UserError, match="takes 4 latent channels, the vae gives 8"):
        resolve_backbone(backbone(copied))


def shard(folder: Path, size: str = "60KB") -> None:
    model = SD3Transformer2DModel.from_pretrained(folder, subfolder="transformer")
    shutil.rmtree(folder / "transformer")
    model.save_pretrained(folder / "transformer", max_shard_size=size)


def test_shards_and_variants(base: Path, copied: Path) -> None:
    expected = load_pretrained_base(base).state_dict()
    shard(copied)
    assert len(weight_files(copied / "transformer")) > 2
    found = load_pretrained_base(copied).state_dict()
    assert all(torch.equal(found[n], expected[n]) for n in expected)
    shutil.rmtree(copied / "transformer")
    shutil.copytree(base / "transformer", copied / "transformer")
    for variant in ("fp16", "bf16"):  # the plain name is taken while it is there, then bf16
        shutil.copy(copied / "transformer" / WEIGHTS, copied / "transformer" / WEIGHTS.replace(".s", f".{variant}.s"))
    assert weight_files(copied / "transformer")[0].name == WEIGHTS
    (copied / "transformer" / WEIGHTS).unlink()
    assert weight_files(copied / "transformer")[0].name == "diffusion_pytorch_model.bf16.safetensors"
    load_pretrained_base(copied)


def test_identity_is_of_the_content(base: Path, copied: Path) -> None:
    def sha(folder: Path) -> str:
        identity = base_identity({"pretrained": str(folder)})
        assert identity is not None
        return identity["sha256"]

    first = sha(base)
    shard(copied)
    assert sha(copied) == first
    file = weight_files(copied / "transformer")[1]
    state = load_file(file)
    name = sorted(state)[0]
    whole = file.read_bytes()
    flipped = bytearray(whole)
    flipped[-1] ^= 1
    file.write_bytes(flipped)
    assert sha(copied) != first
    save_file({("x" + n if n == name else n): v for n, v in state.items()}, file)
    assert sha(copied) != first
    save_file({n: v.bfloat16() for n, v in state.items()}, file)
    assert sha(copied) != first
    file.write_bytes(whole)
    assert sha(copied) == first
    assert base_identity({"pretrained": None}) is None


def remove(*parts: str) -> Callable[[Path], None]:
    return lambda folder: (folder.joinpath(*parts)).unlink()


def truncate(folder: Path) -> None:
    file = folder / "transformer" / WEIGHTS
    file.write_bytes(file.read_bytes()[:-7])


def garbage(folder: Path) -> None:
    (folder / "transformer" / WEIGHTS).write_bytes(b"<html>404</html>" * 100)


def pickled(folder: Path) -> None:
    (folder / "transformer" / WEIGHTS).rename(folder / "transformer" / "diffusion_pytorch_model.bin")


def lose_a_shard(folder: Path) -> None:
    shard(folder)
    weight_files(folder / "transformer")[1].unlink()


def lose_the_index(folder: Path) -> None:
    shard(folder)
    (folder / "transformer" / f"{WEIGHTS}.index.json").unlink()


def escape(folder: Path) -> None:
    shard(folder)
    index = folder / "transformer" / f"{WEIGHTS}.index.json"
    index.write_text(
        re.sub(r'"diffusion_pytorch_model-00001', '"../../diffusion_pytorch_model-00001', index.read_text())
    )


def change(field: str, value: Any) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        path = folder / "transformer" / "config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), field: value}))

    return apply


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda folder: shutil.rmtree(folder), "there is no such folder"),
        (lambda folder: shutil.rmtree(folder / "transformer"), "has no folder transformer/"),
        (remove("transformer", "config.json"), "has no config.json in its folder transformer/"),
        (remove("transformer", WEIGHTS), "incomplete, do it again"),
        (truncate, "damaged or incomplete"),
        (garbage, "damaged or incomplete"),
        (pickled, "never loaded"),
        (lose_a_shard, "the download is incomplete"),
        (lose_the_index, "without their .safetensors.index.json"),
        (escape, "which is not a file beside it"),
        (change("_class_name", "PixArtTransformer2DModel"), "of class PixArtTransformer2DModel"),
        (change("num_layers", 4), "missing transformer_blocks.2.attn.to_add_out.bias"),
        (change("in_channels", 5), "of another shape pos_embed.proj.weight [16, 4, 2, 2] in place of [16, 5, 2, 2]"),
        (change("num_attention_heads", "two"), "does not describe an SD3 transformer"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(spoil: Callable[[Path], None], words: str, copied: Path) -> None:
    spoil(copied)
    with pytest.raises(UserError, match=re.escape(words)) as refused:
        load_pretrained_base(copied)
    assert "\n" not in str(refused.value)


def test_no_hub_is_asked_offline_or_where_it_is_forbidden() -> None:
    for local in (True, False):  # the tests run with HF_HUB_OFFLINE=1
        with pytest.raises(UserError, match=r"not in the hub's cache.*hf download .*DIT4SR_SD35=FOLDER"):
            component_folder("somebody/some-model", "transformer", local_files_only=local)


class Hub(BaseHTTPRequestHandler):
    """A hub with a gated repository, one that is not there, and what was asked of it."""

    asked: list[str] = []

    def do_GET(self) -> None:
        Hub.asked.append(self.path)
        gated = "gated" in self.path
        self.send_response(403 if gated else 404)
        self.send_header("X-Error-Code", "GatedRepo" if gated else "RepoNotFound")
        self.send_header("X-Error-Message", "no")
        self.send_header("Content-Length", "0")
        self.end_headers()

    do_HEAD = do_GET  # noqa: N815

    def log_message(self, *_: Any) -> None:
        pass


def test_gated_and_missing_repositories(tmp_path: Path) -> None:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    script = (
        "from dit4sr.pretrained import component_folder\n"
        "from dit4sr.errors import UserError\n"
        "for name, local in (('somebody/gated', False), ('somebody/absent', False), ('somebody/quiet', True)):\n"
        "    try: component_folder(name, 'transformer', local_files_only=local)\n"
        "    except UserError as error: print(error)\n"
    )
    environment = {
        "HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}", "HF_HUB_OFFLINE": "0", "HF_HOME": str(tmp_path),
        "NO_PROXY": "127.0.0.1", "PATH": "/usr/bin:/bin", "HF_HUB_DISABLE_TELEMETRY": "1",
    }  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-c", script], env=environment, capture_output=True, text=True, timeout=600, check=True
    )
    server.shutdown()
    gated, absent, quiet = done.stdout.strip().splitlines()
    assert "somebody/gated is gated" in gated and "hf auth login" in gated and "DIT4SR_SD35=FOLDER" in gated
    assert "somebody/absent is neither a folder here nor a repository" in absent
    assert "not in the hub's cache" in quiet and not any("quiet" in path for path in Hub.asked)


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("stored", [torch.float32, torch.bfloat16])
def test_a_half_precision_base_trains_float32_control_weights(model: str, stored: torch.dtype, tmp_path: Path) -> None:
    folder = write_tiny_sd3(tmp_path, dtype=stored)
    network = build_network(MODELS[model], backbone(folder), seed=0, dtype=torch.bfloat16)
    trained = {n for n, p in network.named_parameters() if p.requires_grad}
    assert trained == set(network.control_parameter_names()) - set(network.unreachable_parameter_names())
    for name, parameter in network.named_parameters():
        assert parameter.dtype == (torch.float32 if name in trained else torch.bfloat16), name

    torch.manual_seed(0)
    for name, parameter in network.named_parameters():
        if name in trained:
            torch.nn.init.normal_(parameter, std=0.1)
    inputs = tiny_inputs()
    inputs.tokens, inputs.pooled = torch.randn(2, 5, TEXT_WIDTH), torch.randn(2, POOLED_WIDTH)
    exact = build_network(MODELS[model], backbone(folder), seed=0, dtype=torch.float32)
    exact.load_state_dict({n: v.float() for n, v in network.state_dict().items()})
    reference = inputs.call(exact)
    network.enable_gradient_checkpointing()
    for context in (torch.autocast("cpu", torch.bfloat16), torch.autocast("cpu", enabled=False)):
        network.zero_grad()
        with context:
            velocity = inputs.call(network)
        assert (velocity.float() - reference).norm() / reference.norm() < 0.05
        velocity.float().square().mean().backward()
        for name, parameter in network.named_parameters():
            assert (parameter.grad is not None) == (name in trained), name
            if name in trained:
                assert parameter.grad is not None and parameter.grad.dtype == torch.float32
                assert torch.isfinite(parameter.grad).all()


def test_one_precision_computes_in_it_whatever_comes_in(base: Path) -> None:
    network = build_network(MODELS["dit4sr"], backbone(base), seed=0, dtype=torch.bfloat16, trainable_dtype=None)
    inputs = tiny_inputs()
    inputs.tokens, inputs.pooled = torch.randn(2, 5, TEXT_WIDTH), torch.randn(2, POOLED_WIDTH)
    assert inputs.call(network).dtype == torch.bfloat16


PEAK = """
import sys, resource, torch
from dit4sr.models import load_pretrained_base
def rss():
    return int(open("/proc/self/statm").read().split()[1]) * resource.getpagesize() / 1e6
def peak():
    return int([l for l in open("/proc/self/status") if l.startswith("VmHWM")][0].split()[1]) / 1e3
start = peak()
dtype = None if sys.argv[2] == "None" else getattr(torch, sys.argv[2])
model = load_pretrained_base(sys.argv[1], dtype)
loaded = peak() - start
total = sum(p.double().sum() for p in model.parameters())  # every page is read
print(sum(t.numel() * t.element_size() for t in model.state_dict().values()) / 1e6, loaded, peak() - start)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_loading_needs_no_second_copy(tmp_path: Path) -> None:
    """Peak memory of a process that loads 100 MB and reads them all: one copy, not two."""
    fields = folder_fields(
        num_attention_heads=8, attention_head_dim=64, caption_projection_dim=512, num_layers=3, sample_size=16
    )
    SD3Transformer2DModel(**fields).save_pretrained(tmp_path / "transformer")
    done = subprocess.run(
        [sys.executable, "-c", PEAK, str(tmp_path), "None"], capture_output=True, text=True, timeout=600, check=True
    )
    size, loaded, read = (float(value) for value in done.stdout.split())
    assert size > 70
    # Loading maps the files; reading the weights brings in each page once (and a double copy of the largest).
    assert loaded < 0.5 * size + 15 and read < 1.3 * size + 30, done.stdout

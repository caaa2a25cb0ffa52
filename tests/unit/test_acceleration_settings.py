"""configs/acceleration: what it may say, what the verbs make of it, and what needs what."""

from __future__ import annotations

import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL, AutoencoderTiny, FlowMatchEulerDiscreteScheduler
from omegaconf import OmegaConf
from tiny_checkpoint import compose_verb, load, picture, save, write_checkpoint
from tiny_sd3 import relative_error, tiny_controlnet, tiny_inputs, tiny_network

from dit4sr.acceleration import AccelerationSettings, accelerate
from dit4sr.acceleration.autoencoder import accelerate_autoencoder
from dit4sr.acceleration.compiling import cache_folder, check_compiler
from dit4sr.acceleration.network import FastNetwork
from dit4sr.autoencoders import BlockDCT, DiffusersAutoencoder
from dit4sr.config import config_dir
from dit4sr.errors import UserError
from dit4sr.prompts import HashingTextEncoder
from dit4sr.restoration.defaults import published_sampler
from dit4sr.restoration.loading import load_restorer
from dit4sr.restoration.pipeline import DiT4SRPipeline
from dit4sr.restoration.results import made_with
from dit4sr.restoration.run import run

NAMES = sorted(path.stem for path in (config_dir() / "acceleration").glob("*.yaml"))


def plain_config(name: str) -> dict[str, Any]:
    return OmegaConf.to_container(compose_verb("restore", f"acceleration={name}").acceleration)  # type: ignore[return-value]


@pytest.mark.parametrize("name", NAMES)
def test_every_file_states_every_field_itself_or_through_another(name: str) -> None:
    settings = AccelerationSettings.from_config(plain_config(name))
    assert AccelerationSettings.named(name) == settings  # composed as Hydra composes it
    assert plain_config(name)["name"] == name
    assert bool(settings.approximate) == (name in {"fp8", "int8", "nf4"})
    assert settings.changes_network == (name != "none")


@pytest.mark.parametrize(
    ("changes", "hint"),
    [
        ({"fold": 1}, "fold=1: give true or false"),
        ({"compile": "all"}, "compile='all': choose one of none, blocks, step"),
        ({"quantise": "int4"}, "quantise='int4': choose one of"),
        ({"attention": None}, "attention=None: choose one of"),
        ({"compile_mode": "fast"}, "compile_mode='fast': choose one of"),
        ({"batch_streams": True, "fold": False}, "needs acceleration.fold=true"),
        ({"batch_streams": True, "quantise": "int8"}, "needs acceleration.batch_streams=false"),
        ({"reuse_below": 0}, "give a share above 0"),
        ({"reuse_below": "x"}, "give a number"),
        ({"reuse_below": 0.1, "compile": "step"}, "it needs acceleration.cache=true"),
        ({"cuda_graphs": True, "compile_mode": "max-autotune"}, "records CUDA graphs itself"),
        ({"compile": "blocks", "compile_mode": "reduce-overhead"}, "use compile=step"),
        ({"autoencoder_dtype": "int8"}, "autoencoder_dtype='int8': choose one of"),
        ({"network_dtype": "half"}, "network_dtype='half': choose one of float32, bfloat16, float16"),
        ({"depth_wise": "fast"}, "depth_wise='fast': choose one of auto, conv, shifts, kernel"),
        ({"compile_options": 3}, "compile_options=3: give names and values"),
        (
            {"compile_options": {"a": 1}, "compile_mode": "max-autotune-no-cudagraphs"},
            "needs acceleration.compile_mode=",
        ),
        ({"tiny_vae": "nowhere"}, "tiny_vae=nowhere: there is no such folder, and a hub id is organisation/name"),
        ({"speed": 11}, "missing or unknown speed"),
    ],
)
def test_what_means_nothing_is_refused(changes: dict[str, Any], hint: str) -> None:
    with pytest.raises(UserError, match=hint):
        AccelerationSettings.from_config(plain_config("exact") | changes)


@pytest.mark.parametrize(("name", "package"), [("int8", "torchao"), ("nf4", "bitsandbytes")])
def test_a_missing_package_is_one_line_that_names_the_extra(
    name: str, package: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda wanted, *_: None)
    with pytest.raises(UserError, match=rf"needs {package}: pip install 'dit4sr\[quantise\]'"):
        accelerate(tiny_network(), AccelerationSettings.from_config(plain_config(name)))


def test_a_missing_compiler_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.which", lambda name: None)
    with pytest.raises(UserError, match="needs a C\\+\\+ compiler"):
        check_compiler(torch.device("cpu"))


def test_a_missing_compiler_for_triton_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda wanted, *_: object())
    monkeypatch.setattr("shutil.which", lambda name: None)
    with pytest.raises(UserError, match="needs a C compiler \\(gcc\\) for Triton: install one, or acceleration=exact"):
        check_compiler(torch.device("cuda"))


def test_unknown_options_of_the_compiler_are_one_line() -> None:
    settings = AccelerationSettings.from_config(plain_config("compiled") | {"compile_options": {"combine": True}})
    with pytest.raises(UserError, match="compile_options: this torch has no combine"):
        accelerate(tiny_network(), settings)


def test_compiled_code_is_kept_where_the_user_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder() == tmp_path / "dit4sr" / "inductor"
    # What torch sets, as soon as a library asks it where that is, is nobody's choice.
    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR")
    from torch._inductor.runtime.cache_dir_utils import cache_dir

    assert cache_dir() == os.environ["TORCHINDUCTOR_CACHE_DIR"]
    assert cache_folder() == tmp_path / "dit4sr" / "inductor"
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "mine"))
    assert cache_folder() == tmp_path / "mine"


def test_the_injection_s_kernel_needs_a_gpu() -> None:
    with pytest.raises(UserError, match="depth_wise=kernel needs a GPU: use auto, conv or shifts"):
        accelerate(tiny_network(), AccelerationSettings.from_config(plain_config("exact") | {"depth_wise": "kernel"}))


def test_cuda_graphs_need_a_gpu() -> None:
    with pytest.raises(UserError, match="cuda_graphs needs a GPU: use acceleration=compiled or exact"):
        accelerate(tiny_network(), AccelerationSettings.from_config(plain_config("cuda_graphs")))


@pytest.mark.parametrize("verb", ["restore", "evaluate", "demo"])
def test_the_verbs_refuse_what_means_nothing_before_anything_is_loaded(verb: str, tmp_path: Path) -> None:
    from dit4sr.demo.run import run as demo
    from dit4sr.evaluation.run import run as evaluate

    overrides = {"restore": ["input=nowhere"], "evaluate": ["out=nowhere"], "demo": []}[verb]
    config = compose_verb(verb, "acceleration.compile=all", "ckpt=nowhere", *overrides)
    with pytest.raises(UserError, match="acceleration.compile='all': choose one of"):
        {"restore": run, "evaluate": evaluate, "demo": demo}[verb](config)


def test_what_cannot_be_quantised_is_refused_before_a_weight_is_touched(monkeypatch: pytest.MonkeyPatch) -> None:
    network, inputs = tiny_network(), tiny_inputs()
    expected = inputs.call(network)
    settings = AccelerationSettings.from_config(plain_config("fp8") | {"network_dtype": None})
    with pytest.raises(UserError, match="fp8 needs weights in bfloat16, these are float32: set acceleration.network_d"):
        accelerate(network, settings)
    monkeypatch.setattr("importlib.util.find_spec", lambda wanted, *_: object())
    with pytest.raises(UserError, match="fp8 needs a GPU of the Ada or Hopper"):
        accelerate(network, replace(settings, network_dtype="bfloat16"))
    with pytest.raises(UserError, match="network_dtype=float16 needs a GPU"):
        accelerate(network, AccelerationSettings.from_config(plain_config("none") | {"network_dtype": "float16"}))
    assert torch.equal(inputs.call(network), expected), "as it was"


def test_a_network_of_another_type_computes_in_it() -> None:
    settings = AccelerationSettings.from_config(plain_config("exact") | {"network_dtype": "bfloat16"})
    inputs = tiny_inputs()
    expected = inputs.call(tiny_network())
    fast = accelerate(tiny_network(), settings)
    assert {parameter.dtype for parameter in fast.parameters()} == {torch.bfloat16}
    assert 0 < relative_error(inputs.call(fast).float(), expected) < 0.05
    alone = accelerate(tiny_network(), replace(settings, fold=False, fuse=False, cache=False, channels_last=False))
    assert alone.dtype == torch.bfloat16


@pytest.mark.parametrize("make", [tiny_network, tiny_controlnet])
def test_accelerating_twice_is_accelerating_once_or_refused(make: Any) -> None:
    settings, inputs = AccelerationSettings.named("exact"), tiny_inputs()
    fast = accelerate(make(), settings)
    expected = inputs.call(fast)
    assert accelerate(fast, settings) is fast
    for other in (replace(settings, cache=False), AccelerationSettings.named("none")):
        with pytest.raises(UserError, match="accelerated already, by other settings: load it again"):
            accelerate(fast, other)
    assert torch.equal(inputs.call(fast), expected)


def test_the_baseline_does_not_reuse_blocks() -> None:
    settings = AccelerationSettings.from_config(plain_config("exact") | {"reuse_below": 0.1})
    with pytest.raises(UserError, match="is for DiT4SR"):
        accelerate(tiny_controlnet(), settings)


# The autoencoder


def tiny_kl() -> DiffusersAutoencoder:
    torch.manual_seed(0)
    return DiffusersAutoencoder(
        AutoencoderKL(
            down_block_types=("DownEncoderBlock2D",) * 2,
            up_block_types=("UpDecoderBlock2D",) * 2,
            block_out_channels=(8, 16),
            norm_num_groups=4,
            latent_channels=4,
        )
    )


def write_tiny_vae(folder: Path, latent_channels: int) -> str:
    torch.manual_seed(1)
    blocks = {"num_encoder_blocks": (1, 1), "num_decoder_blocks": (1, 1)}
    widths = {"encoder_block_out_channels": (8, 8), "decoder_block_out_channels": (8, 8)}
    AutoencoderTiny(latent_channels=latent_channels, **blocks, **widths).save_pretrained(folder)
    return str(folder)


@torch.no_grad()
def test_channels_last_is_the_same_autoencoder() -> None:
    plain, settings = tiny_kl(), AccelerationSettings.from_config(plain_config("exact"))
    fast: Any = accelerate_autoencoder(tiny_kl(), settings, torch.device("cpu"))
    weight = fast.model.encoder.conv_in.weight
    assert weight.is_contiguous(memory_format=torch.channels_last)
    image = torch.rand(2, 3, 16, 24)
    latent = plain.encode(image)
    assert torch.allclose(fast.encode(image), latent, atol=1e-5)
    assert torch.allclose(fast.decode(latent), plain.decode(latent), atol=1e-5)


@torch.no_grad()
def test_a_tiny_autoencoder_decodes_what_the_other_encoded(tmp_path: Path) -> None:
    settings = AccelerationSettings.from_config(plain_config("none") | {"tiny_vae": write_tiny_vae(tmp_path, 4)})
    fast = accelerate_autoencoder(tiny_kl(), settings, torch.device("cpu"))
    image = torch.rand(1, 3, 16, 16)
    latent = tiny_kl().encode(image)
    assert torch.equal(fast.encode(image), latent)
    assert fast.has_posterior
    assert fast.decode(latent).shape == image.shape
    assert not torch.allclose(fast.decode(latent), tiny_kl().decode(latent), atol=1e-2)
    with pytest.raises(UserError, match="tiny_vae decodes latents of 4 channels and 2 pixels"):
        accelerate_autoencoder(BlockDCT(), settings, torch.device("cpu"))
    nowhere = replace(settings, tiny_vae=str(tmp_path / "nowhere"))
    with pytest.raises(UserError, match="no AutoencoderTiny at"):
        accelerate_autoencoder(tiny_kl(), nowhere, torch.device("cpu"))


@torch.no_grad()
def test_the_autoencoder_computes_in_half_precision_where_asked() -> None:
    settings = AccelerationSettings.from_config(plain_config("none") | {"autoencoder_dtype": "bfloat16"})
    fast: Any = accelerate_autoencoder(tiny_kl(), settings, torch.device("cpu"))
    latent = fast.encode(torch.rand(1, 3, 16, 16))
    assert latent.dtype == torch.float32
    assert fast.model.dtype == torch.bfloat16


# The verbs

MODELS = sorted(path.stem for path in (config_dir() / "model").glob("*.yaml"))


@pytest.mark.parametrize("model", MODELS)
def test_what_the_verbs_do_by_default_suits_every_model_on_the_cpu(model: str, tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "last.ckpt", "backbone=nano", f"model={model}")
    given = [f"ckpt={tmp_path / 'last.ckpt'}", "device=cpu", "sampler.steps=1", f"model={model}"]
    lq = picture(16, 20, seed=3)
    restored = {}
    for acceleration in ("default", "none"):
        asked = given if acceleration == "default" else [*given, f"acceleration={acceleration}"]
        config: Any = OmegaConf.to_container(compose_verb("restore", *asked), resolve=True)
        restorer, trained = load_restorer(config, ["model", "sampler.steps"])
        assert isinstance(restorer.network, FastNetwork) == (acceleration == "default")
        assert trained.network is restorer.network and restorer.acceleration is not None
        restored[acceleration] = restorer.restore(lq, "a cat", seed=0).astype(int)
    assert abs(restored["default"] - restored["none"]).max() <= 1


def test_restore_is_the_same_accelerated_and_says_so_in_the_result(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "last.ckpt", "backbone=nano")
    save(tmp_path / "in" / "a.png", picture(20, 24, seed=3))
    results = {}
    for name in ("none", "exact"):
        out = tmp_path / name
        config = compose_verb(
            "restore",
            f"input={tmp_path / 'in'}",
            f"output={out}",
            f"ckpt={tmp_path / 'last.ckpt'}",
            f"acceleration={name}",
            "sampler.steps=2",
            "device=cpu",
        )
        assert run(config, ["acceleration", "sampler.steps"]) == 0
        results[name] = load(out / "a.png")
        facts = made_with(out / "a.png")
        assert facts is not None
        assert facts["acceleration"]["name"] == name
        assert facts["acceleration"]["fold"] == (name == "exact")
    difference = abs(results["none"].astype(int) - results["exact"].astype(int))
    assert difference.max() <= 1
    assert (difference > 0).mean() < 0.01


@torch.no_grad()
def test_a_pipeline_is_the_same_accelerated_and_then_not_saved(tmp_path: Path) -> None:
    def pipeline() -> DiT4SRPipeline:
        pipe = DiT4SRPipeline(
            transformer=tiny_network(in_channels=16, out_channels=16),
            vae=BlockDCT(),
            scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
            text_encoder=HashingTextEncoder(5, 12, 10),
            sampler={**published_sampler(), "steps": 2, "guidance": 2.0},
            tile={"size": 8, "overlap": 2},
        )
        pipe.set_progress_bar_config(disable=True)
        return pipe

    def restored(pipe: DiT4SRPipeline, **changes: Any) -> Any:
        generator = torch.Generator().manual_seed(0)
        return pipe(picture(16, 24, 0), "a cat", generator=generator, output_type="np", **changes).images

    plain, fast = pipeline(), pipeline()
    fast.accelerate("exact")
    assert abs(restored(fast) - restored(plain)).max() < 1e-4
    louder = {"lr_injection_scale": 1.5}
    assert abs(restored(fast, **louder) - restored(plain, **louder)).max() < 1e-4
    assert fast.transformer.lr_injection_scale == 1.0
    # A hook of accelerate moves weights when the network is called, so it is called.
    fast.transformer._hf_hook = object()
    assert not fast.transformer.prepares
    assert abs(restored(fast) - restored(plain)).max() < 1e-4
    with pytest.raises(UserError, match="cannot be saved"):
        fast.save_pretrained(tmp_path / "saved")
    with pytest.raises(UserError, match="acceleration=warp: choose one of compiled, cuda_graphs"):
        fast.accelerate("warp")
    tiny = AccelerationSettings.from_config(plain_config("none") | {"tiny_vae": "some/where"})
    with pytest.raises(UserError, match="give the pipeline the tiny autoencoder itself"):
        fast.accelerate(tiny)


def test_guidance_intervals_that_are_none_are_refused() -> None:
    from dit4sr.restoration.sampler_settings import SamplerSettings

    sampler: Any = OmegaConf.to_container(OmegaConf.load(config_dir() / "sampler" / "nano.yaml"))
    assert SamplerSettings.from_config(sampler | {"guidance_interval": [0.2, 0.9]}).guidance_interval == (0.2, 0.9)
    without = {name: value for name, value in sampler.items() if name != "guidance_interval"}
    assert SamplerSettings.from_config(without).guidance_interval is None, "samplers that checkpoints carry"
    for wrong in (0.5, [0.5], [0.9, 0.2], [0.1, 2], ["a", 1], [True, 1], []):
        with pytest.raises(UserError, match="guidance_interval"):
            SamplerSettings.from_config(sampler | {"guidance_interval": wrong})


def test_settings_alone_import_nothing_heavy() -> None:
    import subprocess

    code = "import sys, dit4sr.acceleration.settings; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"

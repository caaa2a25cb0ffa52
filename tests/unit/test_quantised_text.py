"""T5's matrices in 8 bits or 4: smaller by what is announced, near, and embeddings of their own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_sd3_folder import write_tiny_sd3
from torch import nn
from transformers import T5Config, T5EncoderModel

from dit4sr.errors import UserError
from dit4sr.prompts import PromptSettings, build_text_encoder
from dit4sr.prompts.ahead import EncodedAhead
from dit4sr.prompts.sd3 import T5, SD3TextEncoder
from dit4sr.prompts.weight_bytes import is_t5_matrix

PROMPTS = ["a red cup on a table", "", "two cats"]
TOKENS = 97
PACKAGES = {"int8_weights": "torchao", "nf4": "bitsandbytes"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny folder of Stable Diffusion 3 whose T5 is wide enough for blocks of 64 weights."""
    folder = write_tiny_sd3(tmp_path_factory.mktemp("sd3"))
    torch.manual_seed(0)
    sizes = {"d_model": 128, "d_kv": 32, "num_heads": 4, "d_ff": 256, "num_layers": 2}
    config = T5Config(vocab_size=300, feed_forward_proj="gated-gelu", **sizes)
    T5EncoderModel(config).save_pretrained(folder / T5)
    return folder


def encoder(folder: Path, quantise: str = "none", **changes: Any) -> SD3TextEncoder:
    pytest.importorskip(PACKAGES.get(quantise, "torch"))
    return SD3TextEncoder.from_pretrained(folder, tokens=TOKENS, quantise=quantise, **changes)


def bytes_of(module: nn.Module) -> int:
    """As they lie in memory: a quantised weight's parts, and what bitsandbytes keeps beside it."""
    total = 0
    for tensor in [*module.parameters(), *module.buffers()]:
        if hasattr(tensor, "__tensor_flatten__"):
            total += sum(getattr(tensor, name).nbytes for name in tensor.__tensor_flatten__()[0])
        else:
            total += tensor.nbytes
        if (state := getattr(tensor, "quant_state", None)) is not None:
            total += state.absmax.nbytes + (state.state2.absmax.nbytes if state.nested else 0)
    return total


@pytest.mark.parametrize(("kind", "within"), [("int8_weights", 0.02), ("nf4", 0.25)])
def test_quantised_embeddings_are_near_and_the_clips_unchanged(kind: str, within: float, folder: Path) -> None:
    exact, near = encoder(folder).encode(PROMPTS), encoder(folder, kind).encode(PROMPTS)
    assert torch.equal(near.pooled, exact.pooled)
    assert torch.equal(near.tokens[:, :77], exact.tokens[:, :77])
    error = (near.tokens - exact.tokens)[:, 77:].norm() / exact.tokens[:, 77:].norm()
    assert 0 < error < within, float(error)


@pytest.mark.parametrize("kind", list(PACKAGES))
def test_it_takes_the_memory_that_is_announced(kind: str, folder: Path) -> None:
    quantised = encoder(folder, kind, dtype=torch.bfloat16).load()
    t5 = quantised._loaded[T5]
    whole = encoder(folder, dtype=torch.bfloat16).load()._loaded[T5]
    linear = {name for name, part in whole.named_modules() if isinstance(part, nn.Linear)}
    assert len(linear) == 14 and all(is_t5_matrix(name) for name in linear)
    assert all(type(t5.get_submodule(name).weight) is not nn.Parameter for name in linear)
    # Rows here are 128 or 256 weights long, so that their scales weigh more than in rows of 4096.
    announced, taken = quantised.weight_bytes[T5], bytes_of(t5)
    assert announced == pytest.approx(taken, rel=0.15)
    assert announced < 0.75 * encoder(folder, dtype=torch.bfloat16).weight_bytes[T5]


def test_embedded_ahead_and_after_a_move(folder: Path) -> None:
    quantised = encoder(folder, "int8_weights")
    expected = quantised.encode(PROMPTS)
    quantised.to("cpu")
    assert quantised.loaded, "where nothing changes it stays"
    quantised.to(None, torch.bfloat16)
    assert not quantised.loaded, "another type is quantised from the files"
    assert quantised.encode(PROMPTS).tokens.dtype == torch.bfloat16
    ahead = EncodedAhead(encoder(folder, "int8_weights"))
    ahead.prepare(PROMPTS, torch.device("cpu"))
    torch.testing.assert_close(ahead.encode(PROMPTS).tokens, expected.tokens, rtol=0, atol=1e-5)


def test_the_cache_knows_one_from_the_other(folder: Path) -> None:
    assert encoder(folder).identity() != encoder(folder, "int8_weights").identity()


@pytest.mark.parametrize(("kind", "package"), list(PACKAGES.items()))
def test_a_missing_package_is_one_line(kind: str, package: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    prompt = PromptSettings.from_config({"encoding": "live", "quantise": kind})
    monkeypatch.setattr("dit4sr.quantising.importlib.util.find_spec", lambda wanted, *_: None)
    with pytest.raises(UserError, match=rf"prompt.quantise={kind} needs {package}: pip install 'dit4sr\[quantise\]'"):
        build_text_encoder({"name": "sd3", "tokens": TOKENS}, str(folder), prompt)
    with pytest.raises(UserError, match="prompt.quantise=int4: choose one of none, int8_weights, nf4"):
        PromptSettings.from_config({"encoding": "live", "quantise": "int4"})

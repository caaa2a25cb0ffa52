"""Pairs from folders and shards, latents and embedded prompts from shards, and the degradation on the device."""

import dataclasses
import io
import itertools
import tarfile

import numpy as np
import pytest
import torch
from safetensors.torch import save

from dit4sr.data.augmentation import Augmentation
from dit4sr.data.datamodule import SRDataModule
from dit4sr.data.degradations import load_preset
from dit4sr.data.images import encode_png, write_png
from dit4sr.data.on_device import degrade_patches
from dit4sr.data.paired import match_pairs
from dit4sr.data.reader import RawSample
from dit4sr.data.samples import make_sample
from dit4sr.data.tally import UnusableSample
from dit4sr.errors import UserError
from dit4sr.prompts import HashingTextEncoder, embedding_to_bytes
from dit4sr.training.precomputed import embed_prompts, stored_latents


def hq_of(lq):
    """Each LQ pixel as a 4 × 4 square, so that a wrong place or flip shows."""
    return np.ascontiguousarray(lq.repeat(4, 0).repeat(4, 1))


@pytest.fixture
def images():
    rng = np.random.default_rng(0)
    return [rng.integers(0, 256, (10, 12, 3), dtype=np.uint8) for _ in range(6)]


def module(tmp_path, preset="dit4sr", **changes):
    data = {
        "name": "paired",
        "batch_size": 4,
        "workers": 0,
        "lanes": 4,
        "shuffle_buffer": 4,
        "prompt_drop": 0.0,
        "augmentation": {"margin": 0, "turns": True, "recolour": 0.5, "invert": 0.5},
    }
    options = {"seed": 0, "crop": 32, "paths": {"data": str(tmp_path / "data")}}
    preset = load_preset(preset) if isinstance(preset, str) else preset
    return SRDataModule({**data, **changes}, preset, **options)


def check_pairs(datamodule, captions, batches=12):
    seen = set()
    for batch in itertools.islice(datamodule.train_dataloader(), batches):
        for hq, lq, prompt in zip(batch["hq"], batch["lq"], batch["prompt"], strict=True):
            assert hq.shape == (3, 32, 32) and lq.shape == (3, 8, 8)
            np.testing.assert_array_equal(hq_of(lq.permute(1, 2, 0).numpy()), hq.permute(1, 2, 0).numpy())
            seen.add(prompt)
    assert seen == set(captions)


def test_folders_are_paired_by_the_rule(tmp_path, images):
    for n, lq in enumerate(images):
        # Alphabetical order would pair them wrongly.
        write_png(tmp_path / "both" / f"{n}_LR4.png", lq)
        write_png(tmp_path / "both" / f"{9 - n}_HR.png", hq_of(images[9 - n]) if 9 - n < 6 else hq_of(lq))
        write_png(tmp_path / "both" / f"{n}_HR.png", hq_of(lq))
        (tmp_path / "both" / f"{n}_HR.txt").write_text(f"caption {n}")
    for n in range(6, 10):
        (tmp_path / "both" / f"{n}_HR.png").unlink()
    both = str(tmp_path / "both")
    check_pairs(
        module(tmp_path, lq=both, hq=both, match={"lq": "(.+)_LR4", "hq": "(.+)_HR"}),
        [f"caption {n}" for n in range(6)],
    )


def test_subfolders_are_part_of_the_key(tmp_path, images):
    for n, lq in enumerate(images[:4]):
        write_png(tmp_path / "lq" / "ab"[n % 2] / f"{n // 2}.png", lq)
        write_png(tmp_path / "hq" / "ab"[n % 2] / f"{n // 2}.png", hq_of(lq))
    pairs = match_pairs(tmp_path / "lq", tmp_path / "hq")
    assert [pair.name for pair in pairs] == ["a/0", "a/1", "b/0", "b/1"]
    check_pairs(module(tmp_path, lq=str(tmp_path / "lq"), hq=str(tmp_path / "hq")), [""])


def test_what_does_not_pair_is_named(tmp_path, images):
    for n in range(3):
        write_png(tmp_path / "lq" / f"{n}.png", images[n])
        write_png(tmp_path / "hq" / f"{n}x.png", hq_of(images[n]))
    lq, hq = tmp_path / "lq", tmp_path / "hq"
    for rules, message in (
        (("(.+)", "(.+)"), "3 of 3 lq images have no hq partner, the first is .*0.png"),
        (("(.+)_LR", "(.+)x"), "no image in .* fits data.match.lq="),
        (("(.+", "(.+)x"), "not a regular expression"),
        (("(.)(.)", "(.+)x"), "exactly one group"),
        (("(.+)", r"\d(x)"), "both 'x' by data.match.hq"),
    ):
        with pytest.raises(UserError, match=message):
            match_pairs(lq, hq, *rules)
    assert len(match_pairs(lq, hq, "(.+)", "(.+)x")) == 3
    write_png(hq / "7x.png", images[0])
    with pytest.raises(UserError, match="1 of 4 hq images have no lq partner, the first is .*7x.png"):
        match_pairs(lq, hq, "(.+)", "(.+)x")
    with pytest.raises(UserError, match="no such folder"):
        match_pairs(tmp_path / "nowhere", hq)
    with pytest.raises(UserError, match="both folders"):
        module(tmp_path, lq=str(lq))
    with pytest.raises(UserError, match="needs data.shards="):
        module(tmp_path)
    with pytest.raises(UserError, match="data.engine=device degrades photos"):
        both = str(tmp_path / "lq")
        module(tmp_path, lq=both, hq=both, engine="device").train_dataloader()


def write_shard(path, samples):
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for n, members in enumerate(samples):
            for extension, data in members.items():
                info = tarfile.TarInfo(f"{n:03d}.{extension}")
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))


@pytest.mark.parametrize("names", [("png", "lq.png"), ("hq.png", "lq.png")])
def test_shards_with_pairs(tmp_path, images, names):
    hq, lq = names
    samples = [
        {hq: encode_png(hq_of(image)), lq: encode_png(image), "txt": f"caption {n}".encode()}
        for n, image in enumerate(images)
    ]
    samples[3].pop(lq)
    write_shard(tmp_path / "pairs" / "a.tar", samples)
    datamodule = module(tmp_path, shards=str(tmp_path / "pairs"), max_bad_share=0.5)
    check_pairs(datamodule, [f"caption {n}" for n in (0, 1, 2, 4, 5)])


def test_a_pair_that_does_not_fit_is_unusable():
    options = {
        "seed": 0,
        "index": 0,
        "crop": 32,
        "preset": load_preset("dit4sr"),
        "augmentation": Augmentation(margin=24, turns=False, recolour=0, invert=0),
        "prompt_drop": 0,
    }
    lq = np.zeros((8, 9, 3), np.uint8)
    for shape in ((32, 40, 3), (64, 72, 3)):
        with pytest.raises(UnusableSample, match="do not fit the scale 4"):
            make_sample(RawSample("here", np.zeros(shape, np.uint8), "", lq), **options)
    assert make_sample(RawSample("here", np.zeros((33, 38, 3), np.uint8), "", lq), **options)["hq"].shape[1:] == (
        32,
        32,
    )
    with pytest.raises(UnusableSample, match="smaller than the crop"):
        make_sample(RawSample("here", np.zeros((28, 36, 3), np.uint8), "", lq[:7]), **options)
    same = RawSample("here", np.zeros((40, 36, 3), np.uint8), "", np.zeros((40, 36, 3), np.uint8))
    assert make_sample(same, **options, scale=1)["lq"].shape == (3, 32, 32)


def test_latents_and_embedded_prompts_come_from_the_shards(tmp_path):
    encoder = HashingTextEncoder(tokens=4, width=16, pooled_width=8)
    generator = torch.Generator().manual_seed(0)
    latents = [
        {name: torch.randn(16, 6, 5, generator=generator, dtype=torch.float32).bfloat16() for name in ("hq", "lq")}
        for _ in range(5)
    ]
    samples = [
        {
            "latent.safetensors": save(pair),
            "txt": f"a caption {n}".encode(),
            "prompt.safetensors": embedding_to_bytes(encoder.encode([f"a caption {n}"])),
        }
        for n, pair in enumerate(latents)
    ]
    samples[2].pop("prompt.safetensors")
    samples[4]["latent.safetensors"] = b"broken"
    write_shard(tmp_path / "latents" / "a.tar", samples)
    options = {"name": "paired_latent", "shards": str(tmp_path / "latents"), "max_bad_share": 0.5, "prompt_drop": 0.3}
    datamodule = module(tmp_path, **options)  # crop 32 and 8 pixels a latent pixel: 4 × 4
    seen, dropped = set(), 0
    for batch in itertools.islice(datamodule.train_dataloader(), 20):
        z, lr_latent = stored_latents(batch, 16)
        assert z.shape == lr_latent.shape == (4, 16, 4, 4) and z.dtype == torch.float32
        text = embed_prompts(encoder, batch["prompt"], batch["embedding"])
        expected = encoder.encode(batch["prompt"])
        torch.testing.assert_close(text.tokens, expected.tokens, atol=0.02, rtol=0.02)
        torch.testing.assert_close(text.pooled, expected.pooled, atol=0.02, rtol=0.02)
        for row, prompt in enumerate(batch["prompt"]):
            if prompt == "":
                assert batch["embedding"][row] is None
                dropped += 1
                continue
            n = int(prompt[-1])
            (place,) = [
                (y, x)
                for y, x in itertools.product(range(3), range(2))
                if torch.equal(latents[n]["hq"][:, y : y + 4, x : x + 4].float(), z[row])
                and torch.equal(latents[n]["lq"][:, y : y + 4, x : x + 4].float(), lr_latent[row])
            ]
            seen.add((n, place))
    assert {n for n, _ in seen} == {0, 1, 2, 3} and {place for _, place in seen} == set(
        itertools.product(range(3), range(2))
    )
    assert 8 < dropped < 45
    with pytest.raises(UserError, match="16 channels, the backbone's autoencoder 4"):
        stored_latents(batch, 4)
    other = HashingTextEncoder(tokens=5, width=16, pooled_width=8)
    with pytest.raises(UserError, match="data.use_embedded_prompts=false"):
        embed_prompts(other, batch["prompt"], [encoder_row(encoder)] * 4)
    plain = next(iter(module(tmp_path, **options, use_embedded_prompts=False).train_dataloader()))
    assert plain["embedding"] == [None] * 4


def encoder_row(encoder):
    embedding = encoder.encode(["x"])
    return {"tokens": embedding.tokens[0], "pooled": embedding.pooled[0]}


def test_prompts_are_encoded_only_where_they_are_missing():
    class Counting(HashingTextEncoder):
        asked: list = []

        def encode(self, prompts):
            self.asked.append(prompts)
            return super().encode(prompts)

    encoder = Counting(tokens=4, width=16, pooled_width=8)
    rows = [encoder_row(HashingTextEncoder(4, 16, 8)), None]
    embed_prompts(encoder, ["x", ""], rows)
    embed_prompts(encoder, ["x", "x"], [rows[0], rows[0]])
    assert encoder.asked == [[""]]
    embed_prompts(encoder, ["x", ""], None)
    assert encoder.asked == [[""], ["x", ""]]


def test_the_device_engine_gives_the_workers_pairs(tmp_path):
    """The same patches, parameters and places."""
    zero = {f"{kind}_range{k}": (0.0, 0.0) for kind in ("noise", "poisson_scale") for k in ("", "2")}
    preset = dataclasses.replace(load_preset("dit4sr"), **zero)
    options = {
        "name": "embedded",
        "batch_size": 8,
        "augmentation": {"margin": 24, "turns": True, "recolour": 1.0, "invert": 0.25},
    }
    datamodule = module(tmp_path, preset, **options, engine="device")
    datamodule.prepare_data()
    raw = next(iter(datamodule.train_dataloader()))
    assert raw["patch"].shape == (8, 3, 56, 56) and "hq" not in raw
    batch = datamodule.on_after_batch_transfer(raw, 0)
    worker = next(iter(module(tmp_path, preset, **options).train_dataloader()))
    assert set(batch) == set(worker) and batch["prompt"] == worker["prompt"]
    for key in ("hq", "lq"):
        assert batch[key].shape == worker[key].shape and batch[key].dtype == torch.uint8
    assert (batch["hq"].int() - worker["hq"].int()).abs().max() <= 1
    # Without noise the engines are apart by the codecs' roundings alone; a wrong place costs tens of levels.
    assert (batch["lq"].float() - worker["lq"].float()).abs().flatten(1).mean(1).max() < 4
    assert datamodule.on_after_batch_transfer(worker, 0) is worker
    again = degrade_patches(raw, preset, seed=0, crop=32, margin=24)
    assert torch.equal(again["lq"], batch["lq"])

"""What `prepare` cuts, leaves out and adds: policies, filters, payloads, captions, pairs, latents, embedded prompts."""

import json

import numpy as np
import pytest
from omegaconf import OmegaConf
from preparing import config, noise, samples, sources_of
from safetensors.torch import load

import dit4sr.images
from dit4sr.autoencoders import BlockDCT
from dit4sr.config import config_dir
from dit4sr.data.degradations import degrade, load_preset
from dit4sr.data.images import decode_image, encode_image, write_png
from dit4sr.data.patches import training_patches
from dit4sr.data.photos import Photo
from dit4sr.data.preparation.filters import mean_gradient
from dit4sr.data.prepare import prepare
from dit4sr.data.shards import read_manifest
from dit4sr.errors import UserError
from dit4sr.prompts import HashingTextEncoder, embedding_from_bytes
from dit4sr.randomness import sample_seed


def photo(image):
    return Photo("p", "p", image, "", held_out=False)


def cut(image, **options):
    defaults = {"patch": 32, "patches_per_photo": 100, "scales": (1,), "seed": 0}
    return list(training_patches(photo(image), 0, **{**defaults, **options}))


def test_a_grid_covers_every_pixel_once_more_only_at_the_far_edges():
    image = noise(0, 100)  # 100 x 104
    patches = cut(image, policy="grid")
    seen = np.zeros(image.shape[:2], int)
    for patch in patches:
        left, top, right, bottom = patch.origin["box"]
        seen[top:bottom, left:right] += 1
        np.testing.assert_array_equal(patch.image, image[top:bottom, left:right])
    assert len(patches) == 16
    assert seen.min() == 1
    assert (seen[:64, :64] == 1).all()
    assert len(cut(image[:96, :96], policy="grid")) == 9  # no rest
    assert len(cut(image[:96, :96], policy="grid", stride=16)) == 25
    some = cut(image, policy="grid", patches_per_photo=5)
    assert len(some) == 5
    assert {tuple(p.origin["box"]) for p in some} < {tuple(p.origin["box"]) for p in patches}


def test_the_centre_of_every_scale():
    patches = cut(noise(0, 100), policy="centre", scales=(1, 0.5, 0.1))
    assert [(p.origin["scale"], p.origin["box"]) for p in patches] == [(1, [36, 34, 68, 66]), (0.5, [10, 9, 42, 41])]


def test_the_gradient_is_sobels():
    edge = np.zeros((40, 40, 3), np.uint8)
    edge[:, 20:] = 255
    assert mean_gradient(edge) == pytest.approx(4 * 2 / 40)  # 1 + 2 + 1, in the two columns beside the edge
    assert mean_gradient(np.full((40, 40, 3), 90, np.uint8)) == 0


def test_flat_patches_are_drawn_again_and_then_left_out():
    image = np.full((200, 200, 3), 128, np.uint8)
    image[:, 150:] = noise(1, 200)[:, :50]
    lost = []
    options = {"accept": lambda patch: mean_gradient(patch) > 0.05, "refused": lambda: lost.append(1)}
    first = cut(image, policy="random", **options)
    assert len(first) + len(lost) == 100
    assert 50 < len(lost) < 90  # a flat quarter would be found by chance in about 0.7
    lost.clear()
    again = cut(image, policy="random", redraws=50, **options)
    assert len(again) == 100
    assert not lost
    assert all(mean_gradient(patch.image) > 0.05 for patch in again)
    kept = {patch.key: patch.origin for patch in again}
    assert all(kept[patch.key] == patch.origin for patch in first)  # the accepted ones stay what they were


def test_each_filter_gives_its_reason(tmp_path, capsys):
    folder = tmp_path / "photos"
    write_png(folder / "a.png", noise(0))
    write_png(folder / "half flat.png", np.hstack([noise(1), np.zeros((60, 64, 3), np.uint8)]))
    (folder / "b.webp").write_bytes(encode_image(noise(0), "webp", 100))  # the same pixels in another file
    write_png(folder / "flat.png", np.full((80, 80, 3), 200, np.uint8))
    write_png(folder / "narrow.png", noise(2)[:40])
    write_png(folder / "tiny.png", noise(3)[:20])
    (folder / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    cfg = config(tmp_path, source=str(folder), policy="grid", min_side=50, patches_per_photo=96)
    assert prepare(cfg) == 1
    manifest = read_manifest(tmp_path / "data" / "photos" / "train")
    assert manifest["reasons"] == {"duplicate": 1, "flat": 1, "too small": 2, "undecodable": 1}
    assert manifest["counts"] == {"photos": 2, "patches": 4 + 4, "held_out": 0, "benchmark": 0, "skipped": 5}
    assert manifest["flat_patches"] == 4
    out = capsys.readouterr().out
    for line in (
        "skipped b.webp: the same picture as a.png",
        "skipped flat.png: no patch has a mean gradient above min_gradient=0.05",
        "skipped narrow.png: 40x64 has a side under min_side=50 px",
        "skipped tiny.png: 20x64 is smaller than the patch of 32 px",
        "skipped broken.png: not a readable PNG",
        "5 photos skipped, 1 of them corrupt (1 duplicate, 1 flat, 2 too small, 1 undecodable)",
    ):
        assert line in out
    lines = [json.loads(line) for line in (tmp_path / "data" / "photos" / "photos.jsonl").read_text().splitlines()]
    assert [line["name"] for line in lines] == sorted(path.name for path in folder.iterdir())
    for duplicates, count in (("bytes", 3), ("keep", 3)):
        other = {**cfg, "duplicates": duplicates, "out": str(tmp_path / duplicates)}
        assert prepare(other) == 1
        assert read_manifest(tmp_path / duplicates / "train")["counts"]["photos"] == count


def test_a_duplicate_leaves_no_trace(tmp_path):
    """The shards are those of the folder without it: nothing moves, and no held-out photo comes back in training."""
    folder = tmp_path / "photos"
    for k in range(7):
        write_png(folder / f"{k}.png", noise(k))
    assert prepare(config(tmp_path, source=str(folder), out=str(tmp_path / "without"))) == 0
    (folder / "1 again.png").write_bytes((folder / "0.png").read_bytes())
    (folder / "9.png").write_bytes((folder / "3.png").read_bytes())
    assert prepare(config(tmp_path, source=str(folder), out=str(tmp_path / "with"))) == 0
    without, found = (list(samples(tmp_path / name).values()) for name in ("without", "with"))
    assert [m["png"] for m in found] == [m["png"] for m in without]
    assert [m["json"] for m in found] == [m["json"] for m in without]
    for seed in range(4):
        out = tmp_path / f"held{seed}"
        prepare(config(tmp_path, source=str(folder), out=str(out), seed=seed, held_out=0.5, benchmark_crop=40))
        manifest = read_manifest(out / "train")
        held = set(manifest["held_out"])
        assert held.isdisjoint(sources_of(out))
        assert not {"0.png", "1 again.png"} <= held | set(sources_of(out))
        assert len(list((out / "benchmark" / "test_HR").iterdir())) == manifest["counts"]["benchmark"] == len(held)


@pytest.mark.parametrize(("payload", "extension"), [("png", "png"), ("jpeg", "jpg"), ("webp", "webp")])
def test_payloads(tmp_path, payload, extension):
    y, x = np.mgrid[:60, :64]
    smooth = np.dstack([128 + 100 * np.sin(x / 7), 128 + 90 * np.cos(y / 5), 2 * (x + y)]).clip(0, 255).astype(np.uint8)
    write_png(tmp_path / "photos" / "a.png", smooth)
    sizes = []
    for quality in (60, 100):
        out = tmp_path / str(quality)
        cfg = config(
            tmp_path, source=str(tmp_path / "photos"), payload=payload, quality=quality, scales=[1], out=str(out)
        )
        assert prepare(cfg) == 0
        for members in samples(out).values():
            left, top, right, bottom = json.loads(members["json"])["box"]
            error = np.abs(decode_image(members[extension]).astype(int) - smooth[top:bottom, left:right])
            exact = payload == "png" or (payload == "webp" and quality == 100)
            assert error.max() == 0 if exact else 0 < error.max() < 60
            assert set(members) == {extension, "txt", "json"}
        sizes.append(sum(len(members[extension]) for members in samples(out).values()))
    assert (sizes[0] == sizes[1]) == (payload == "png")


@pytest.fixture
def captioned(tmp_path):
    write_png(tmp_path / "photos" / "a.png", noise(0))
    (tmp_path / "photos" / "a.txt").write_text("A cup. The background is blurry.")
    write_png(tmp_path / "photos" / "b.png", noise(1))
    return tmp_path / "photos"


def captions(tmp_path, captioned, **captioner):
    out = tmp_path / captioner["name"] / str(len(captioner))
    assert prepare(config(tmp_path, source=str(captioned), out=str(out), captioner=captioner)) == 0
    return [members["txt"].decode() for members in samples(out).values()]


def test_captions(tmp_path, captioned):
    assert captions(tmp_path, captioned, name="beside") == ["A cup. The background is blurry."] * 3 + [""] * 3
    assert captions(tmp_path, captioned, name="beside", drop_optics=True) == ["A cup."] * 3 + [""] * 3
    assert captions(tmp_path, captioned, name="fixed", prompt="Good.") == ["Good."] * 6
    assert captions(tmp_path, captioned, name="none") == [""] * 6
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "b.txt").write_text("A bag.\n")
    found = captions(tmp_path, captioned, name="folder", path=str(tmp_path / "texts"), allow_missing=True)
    assert found == [""] * 3 + ["A bag."] * 3
    with pytest.raises(UserError, match=r"has no a\.txt for a\.png"):
        captions(tmp_path, captioned, name="folder", path=str(tmp_path / "texts"))
    with pytest.raises(UserError, match="not a folder"):
        captions(tmp_path, captioned, name="folder", path=None)
    with pytest.raises(UserError, match="captioner=gpt"):
        captions(tmp_path, captioned, name="gpt")


def test_latents_and_embedded_prompts_are_the_backbones(tmp_path, captioned):
    backbone = OmegaConf.to_container(OmegaConf.load(config_dir() / "backbone" / "nano.yaml"))
    cfg = config(
        tmp_path, source=str(captioned), content="paired_latent", embed_prompts=True, backbone=backbone, scales=[1]
    )
    assert prepare(cfg) == 0
    encoder, autoencoder = HashingTextEncoder(8, 64, 64), BlockDCT()
    found = samples(tmp_path / "data" / "photos")
    assert len(found) == 6
    for key, members in found.items():
        assert set(members) == {"png", "lq.png", "txt", "json", "prompt.safetensors", "latent.safetensors"}
        left, top, right, bottom = json.loads(members["json"])["box"]
        image = noise("ab".index(json.loads(members["json"])["source"][0]))[top:bottom, left:right]
        hq, lq = degrade(image, load_preset("dit4sr"), sample_seed(0, 0, f"degradation of {key}"))
        np.testing.assert_array_equal(decode_image(members["png"]), hq)
        np.testing.assert_array_equal(decode_image(members["lq.png"]), lq)
        latents = load(members["latent.safetensors"])
        assert {name: (str(value.dtype), tuple(value.shape)) for name, value in latents.items()} == {
            "hq": ("torch.float32", (16, 8, 8)),
            "lq": ("torch.float32", (16, 8, 8)),
        }
        upsampled = dit4sr.images.upsample_bicubic(dit4sr.images.from_hwc(lq), 32, 32)
        np.testing.assert_array_equal(latents["hq"], autoencoder.encode(dit4sr.images.from_hwc(hq))[0])
        np.testing.assert_array_equal(latents["lq"], autoencoder.encode(upsampled)[0])
        stored = embedding_from_bytes(members["prompt.safetensors"])
        wanted = encoder.encode([members["txt"].decode()])
        assert str(stored.tokens.dtype) == "torch.bfloat16"
        np.testing.assert_array_equal(stored.tokens.float(), wanted.tokens.bfloat16().float())
        np.testing.assert_array_equal(stored.pooled.float(), wanted.pooled.bfloat16().float())
    networks = read_manifest(tmp_path / "data" / "photos" / "train")["settings"]["networks"]
    assert set(networks) == {"autoencoder", "text_encoder"}
    prepare({**cfg, "latent_dtype": "bfloat16", "out": str(tmp_path / "half")})
    half = load(next(iter(samples(tmp_path / "half").values()))["latent.safetensors"])
    assert {str(value.dtype) for value in half.values()} == {"torch.bfloat16"}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"policy": "center"}, "policy=center: choose one of random, grid, centre"),
        ({"payload": "gif"}, "payload=gif: choose one of png, jpeg, webp"),
        ({"quality": 101}, "quality=101 must be a whole number from 1 to 100"),
        ({"duplicates": True}, "duplicates=True: choose one of pixels, bytes, keep"),
        ({"content": "latent"}, "content=latent: choose one of hq, paired, paired_latent"),
        ({"content": "paired", "patch": 30}, "patch=30 must be a multiple of 4"),
        ({"content": "paired_latent"}, "pass backbone="),
        ({"embed_prompts": "yes"}, "embed_prompts=yes must be true or false"),
        ({"grid_stride": 0}, "grid_stride=0"),
        ({"min_gradient": "much"}, "min_gradient=much"),
        ({"min_side": -1}, "min_side=-1"),
        ({"scales": [1, 1]}, "names a scale twice"),
        ({"latent_dtype": "float16"}, "latent_dtype=float16"),
        ({"part": "8/8"}, "part=8/8 must be i/n with 0 <= i < n"),
        ({"part": "0/0"}, "part=0/0"),
        ({"part": 3}, "part=3"),
        ({"part": "0/2", "merge": True}, "leave part= out"),
        ({"processes": -2}, "processes=-2"),
        ({"device": "gpu"}, "device=gpu"),
    ],
)
def test_bad_settings(tmp_path, captioned, changes, message):
    with pytest.raises(UserError, match=message):
        prepare(config(tmp_path, source=str(captioned), **changes))
    assert not (tmp_path / "data").exists()

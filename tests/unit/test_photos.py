"""The embedded photos, and what `prepare` makes of them and of folders."""

import json
import shutil
import tarfile

import cv2
import numpy as np
import pytest
from omegaconf import OmegaConf
from tiny_checkpoint import compose_verb

from dit4sr.config import config_dir
from dit4sr.data import photos as photos_module
from dit4sr.data.degradations import degrade, load_preset
from dit4sr.data.images import encode_png, read_image, write_png
from dit4sr.data.patches import benchmark_crops, training_patches
from dit4sr.data.photos import Photo, embedded_photos
from dit4sr.data.prepare import ensure_embedded, prepare
from dit4sr.data.shards import find_shards, read_manifest
from dit4sr.errors import UserError
from dit4sr.randomness import sample_seed


def config(tmp_path, **changes):
    cfg = OmegaConf.to_container(OmegaConf.load(config_dir() / "prepare.yaml"))
    preset = OmegaConf.to_container(OmegaConf.load(config_dir() / "degradation" / "dit4sr.yaml"))
    paths = {"data": str(tmp_path / "data")}
    return {
        **cfg,
        "degradation": preset,
        "paths": paths,
        "patches_per_photo": 4,
        "samples_per_shard": 8,
        **changes,
    }


def test_embedded_photos():
    photos = {photo.name: photo for photo in embedded_photos()}
    assert len(photos) == 11
    assert {name for name, photo in photos.items() if photo.held_out} == {"chelsea", "coffee", "rocket"}
    assert photos["motorcycle_left"].scene == photos["motorcycle_right"].scene
    assert not {p.scene for p in photos.values() if p.held_out} & {p.scene for p in photos.values() if not p.held_out}
    for photo in photos.values():
        assert photo.image.dtype == np.uint8
        assert photo.image.ndim == 3
        assert min(photo.image.shape[:2]) >= 256
        assert photo.image.std(axis=-1).mean() > 1  # in colour
        assert photo.caption.endswith(".")
        assert photo.caption.count(".") == 1
        assert photo.licence != "unknown"
    assert photos["retina"].image.shape == (1411, 1411, 3)
    red, green, blue = photos["flower"].image[200:230, 310:340].reshape(-1, 3).mean(0)
    assert red > green > blue  # RGB, not BGR: the dahlia is orange


def test_a_missing_embedded_photo_says_what_to_install(monkeypatch):
    entry = photos_module._EMBEDDED[0]
    missing = photos_module._Embedded("skimage", "data/nothing.png", "s", "c", "l")
    monkeypatch.setattr(photos_module, "_EMBEDDED", (entry, missing))
    with pytest.raises(UserError, match=r'scikit-image .* has no readable data/nothing.png: pip install "scikit-image'):
        embedded_photos()


def test_patches_are_the_photo_at_their_box():
    rng = np.random.default_rng(0)
    photo = Photo("a", "a", rng.integers(0, 256, (90, 150, 3), dtype=np.uint8), "c", held_out=False)
    options = {"patch": 40, "patches_per_photo": 60, "scales": (1, 0.5), "seed": 3}
    patches = list(training_patches(photo, 0, **options))
    pyramid = {1: photo.image, 0.5: cv2.resize(photo.image, (75, 45), interpolation=cv2.INTER_AREA)}
    for patch in patches:
        left, top, right, bottom = patch.origin["box"]
        np.testing.assert_array_equal(patch.image, pyramid[patch.origin["scale"]][top:bottom, left:right])
        assert patch.image.shape == (40, 40, 3)
    share = np.mean([patch.origin["scale"] == 0.5 for patch in patches])
    assert 0.05 < share < 0.4  # a fifth is expected: as many patches a pixel at both scales
    assert len({tuple(patch.origin["box"]) for patch in patches}) > 50
    again = list(training_patches(photo, 0, **options))
    assert [p.origin for p in again] == [p.origin for p in patches]
    other = list(training_patches(photo, 0, **{**options, "seed": 4}))
    assert [p.origin for p in other] != [p.origin for p in patches]


@pytest.mark.parametrize(
    ("shape", "corners"),
    [
        ((300, 451), [(22, 97)]),
        ((400, 600), [(72, 44), (72, 300)]),
        ((600, 300), [(44, 22), (300, 22)]),
        ((255, 900), []),
    ],
)
def test_benchmark_crops_are_central_and_do_not_overlap(shape, corners):
    rows, columns = np.indices(shape)
    image = np.dstack([rows % 256, columns % 256, rows // 256 + 16 * (columns // 256)]).astype(np.uint8)
    crops = benchmark_crops(image, 256)
    assert len(crops) == len(corners)
    for crop, (top, left) in zip(crops, corners, strict=True):
        np.testing.assert_array_equal(crop, image[top : top + 256, left : left + 256])


def test_prepare_embedded(tmp_path, capsys):
    cfg = config(tmp_path)
    assert prepare(cfg) == 0
    root = tmp_path / "data" / "embedded"
    manifest = read_manifest(root / "train")
    assert manifest["counts"] == {"photos": 8, "patches": 26, "held_out": 3, "benchmark": 5, "skipped": 0}
    assert manifest["held_out"] == ["chelsea", "coffee", "rocket"]

    origins = []
    for shard in find_shards(root):
        with tarfile.open(shard) as tar:
            origins += [json.load(tar.extractfile(m)) for m in tar if m.name.endswith(".json")]
    assert len(origins) == 26
    assert not {origin["source"] for origin in origins} & {"chelsea", "coffee", "rocket"}
    assert not {origin["scene"] for origin in origins} & {p.scene for p in embedded_photos() if p.held_out}

    # HR and LR are what the degradation makes of the plain crop.
    coffee = next(photo for photo in embedded_photos() if photo.name == "coffee")
    crop = np.ascontiguousarray(coffee.image[72:328, 44:300])
    hq, lq = degrade(crop, load_preset("dit4sr"), sample_seed(0, 1, "benchmark"))
    np.testing.assert_array_equal(read_image(root / "benchmark" / "test_HR" / "coffee_0.png"), hq)
    np.testing.assert_array_equal(read_image(root / "benchmark" / "test_LR" / "coffee_0.png"), lq)
    assert (root / "benchmark" / "prompts" / "coffee_0.txt").read_text().strip() == coffee.caption

    # A second run changes nothing, another folder gets the same bytes, other settings are not mixed in.
    before = {path: path.stat().st_mtime_ns for path in root.rglob("*")}
    capsys.readouterr()
    assert prepare(cfg) == 0
    assert "up to date" in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in root.rglob("*")} == before
    assert ensure_embedded(tmp_path / "data") == root
    assert {path: path.stat().st_mtime_ns for path in root.rglob("*")} == before
    prepare({**cfg, "out": str(tmp_path / "other")})
    assert read_manifest(tmp_path / "other" / "train")["shards"] == manifest["shards"]
    with pytest.raises(UserError, match=r"other settings \(patch\).*overwrite=true"):
        prepare({**cfg, "patch": 64})
    with pytest.raises(UserError, match="smaller patch="):
        prepare({**cfg, "patch": 2000, "overwrite": True})
    assert read_manifest(root / "train") == manifest  # a failure destroys nothing
    assert prepare({**cfg, "samples_per_shard": 26, "overwrite": True}) == 0
    assert [path.name for path in sorted((root / "train").iterdir())] == ["manifest.json", "train-000000.tar"]
    assert sorted(path.name for path in root.iterdir()) == ["benchmark", "photos.jsonl", "train"]


def test_an_interrupted_preparation_is_done_again(tmp_path):
    cfg = config(tmp_path)
    prepare(cfg)
    train = tmp_path / "data" / "embedded" / "train"
    whole = read_manifest(train)
    (train / "manifest.json").unlink()
    (train / whole["shards"][1]["name"]).unlink()
    assert prepare(cfg) == 0
    assert read_manifest(train) == whole
    assert len(find_shards(train)) == len(whole["shards"])


@pytest.fixture
def folder(tmp_path):
    """Three usable photos, one too small, one corrupt, one with a caption, one in a folder below."""
    rng = np.random.default_rng(0)
    folder = tmp_path / "holiday"
    for name, side in {"a": 140, "b/c": 300, "b/d": 290, "small": 50}.items():
        write_png(folder / f"{name}.png", rng.integers(0, 256, (side, side, 3), dtype=np.uint8))
    (folder / "b" / "c.txt").write_text("A beach.\n")
    (folder / "broken.jpg").write_bytes(encode_png(rng.integers(0, 256, (99, 99, 3), dtype=np.uint8))[:500])
    (folder / "notes.pdf").write_bytes(b"%PDF")
    return folder


def test_prepare_folder(tmp_path, folder, capsys):
    cfg = config(tmp_path, source=str(folder))
    assert prepare(cfg) == 1
    out = capsys.readouterr().out
    assert "skipped broken.jpg: not a readable PNG, JPEG or WebP image" in out
    assert "skipped small.png: 50x50 is smaller than the patch of 128 px" in out
    assert "2 photos skipped, 1 of them corrupt" in out
    root = tmp_path / "data" / "holiday"
    manifest = read_manifest(root / "train")
    assert manifest["counts"] == {"photos": 3, "patches": 12, "held_out": 0, "benchmark": 0, "skipped": 2}
    captions = {}
    for shard in find_shards(root):
        with tarfile.open(shard) as tar:
            texts = {m.name.rpartition(".")[0]: tar.extractfile(m).read() for m in tar if m.name.endswith(".txt")}
        captions |= texts
    assert sum(text == b"A beach." for text in captions.values()) == 4
    assert sum(text == b"" for text in captions.values()) == 8
    assert prepare(cfg) == 1  # up to date, and still only partly done
    shutil.copy(folder / "a.png", folder / "new.png")
    with pytest.raises(UserError, match=r"other settings \(files\)"):
        prepare(cfg)


def test_part_of_a_folder_is_held_out(tmp_path, folder):
    prepare(config(tmp_path, source=str(folder), held_out=0.6, seed=1))
    root = tmp_path / "data" / "holiday"
    manifest = read_manifest(root / "train")
    held, used = set(manifest["held_out"]), {source["name"] for source in manifest["sources"]}
    assert held
    assert used
    assert not held & used
    names = {path.stem for path in (root / "benchmark" / "test_LR").iterdir()}
    large = [name for name in held if name in ("b/c.png", "b/d.png")]  # 256 px or more
    assert len(names) == len(large) > 0
    assert {name.rpartition("-")[0] for name in names} == {name[:-4].replace("/", "_") for name in large}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"source": "nowhere"}, "not a folder"),
        ({"source": "empty"}, "holds no image"),
        ({"source": "holiday", "patch": 400}, "none of the 5 photos gave a patch of 400 px .*4 too small"),
        ({"source": "holiday", "out": "holiday/shards"}, "lies inside source"),
        ({"patch": 0}, "patch=0"),
        ({"patch": "bananas"}, "patch=bananas must be a whole number"),
        ({"scales": 0.5}, "scales=0.5 must be a list"),
        ({"scales": [2.0]}, "scales"),
        ({"held_out": 1.0}, "held_out"),
        ({"benchmark_crop": 254}, "multiple of 4"),
    ],
)
def test_bad_settings_are_refused(tmp_path, folder, monkeypatch, changes, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=message):
        prepare(config(tmp_path, **changes))
    assert not list(tmp_path.rglob("*.tar"))


def test_a_folder_that_lost_a_shard_or_an_image_is_made_again(tmp_path, capsys):
    ensure_embedded(tmp_path)
    embedded = tmp_path / "embedded"
    shard, image = embedded / "train" / "train-000000.tar", embedded / "benchmark" / "test_LR" / "coffee_0.png"
    original = shard.read_bytes(), image.read_bytes()
    shard.write_bytes(original[0][:-512])
    image.unlink()
    capsys.readouterr()
    ensure_embedded(tmp_path)
    assert "lost files" not in capsys.readouterr().out  # reading is quick: only prepare looks
    assert prepare(compose_verb("prepare", f"paths.data={tmp_path}")) == 0
    assert "lost files" in capsys.readouterr().out
    assert (shard.read_bytes(), image.read_bytes()) == original

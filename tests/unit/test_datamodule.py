"""Batches: the same bytes for any number of workers, ranks and restarts."""

import itertools
import multiprocessing
import os
import time
import warnings

import numpy as np
import pytest
import torch

from dit4sr.data.augmentation import Augmentation
from dit4sr.data.datamodule import SRDataModule, validation_pairs
from dit4sr.data.degradations import degrade, load_preset
from dit4sr.data.images import write_png
from dit4sr.data.loading import LoaderSettings, TrainingBatches
from dit4sr.data.reader import RawSample
from dit4sr.data.remote import Shard
from dit4sr.data.samples import make_sample
from dit4sr.data.shards import ShardSample, find_shards, write_shards
from dit4sr.data.sources import SourceSettings
from dit4sr.data.tally import UnusableSample
from dit4sr.errors import UserError
from dit4sr.randomness import sample_seed

PLAIN = Augmentation(margin=0, turns=False, recolour=0, invert=0)


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    """50 samples of 40 × 44 px with captions, in 4 shards of unequal size."""
    folder = tmp_path_factory.mktemp("shards")
    rng = np.random.default_rng(0)
    write_shards(
        folder,
        (
            ShardSample(f"{n:03d}", rng.integers(0, 256, (40, 44, 3), dtype=np.uint8), f"caption {n}", {})
            for n in range(50)
        ),
        13,
    )
    return find_shards(folder)


def batches(shards, count, **changes):
    options = {"seed": 0, "crop": 32, "batch_size": 8, "prompt_drop": 0.2, "shuffle_buffer": 4, **changes}
    sources = (SourceSettings("test", 1.0, "synthetic", tuple(Shard(str(shard)) for shard in shards)),)
    settings = LoaderSettings(sources=sources, preset=load_preset("dit4sr"), augmentation=PLAIN, **options)
    return list(itertools.islice(TrainingBatches(settings), count))


def assert_equal(got, expected):
    assert len(got) == len(expected)
    for a, b in zip(got, expected, strict=True):
        assert a["prompt"] == b["prompt"]
        for key in ("index", "hq", "lq"):
            assert torch.equal(a[key], b[key])
            assert a[key].stride() == b[key].stride()  # convolutions round in the order of the layout


def test_a_batch_is_what_it_should_be(shards):
    first, second = batches(shards, 2)
    assert first["index"].tolist() == list(range(8))
    assert second["index"].tolist() == list(range(8, 16))
    assert (first["hq"].shape, first["hq"].dtype) == ((8, 3, 32, 32), torch.uint8)
    assert (first["lq"].shape, first["lq"].dtype) == ((8, 3, 8, 8), torch.uint8)
    assert len(first["prompt"]) == 8


@pytest.mark.parametrize(("workers", "batch_size"), [(1, 8), (2, 8), (4, 8), (4, 6)])
def test_workers_change_nothing(shards, workers, batch_size):
    expected = batches(shards, 10, batch_size=batch_size, start=3)
    assert_equal(batches(shards, 10, batch_size=batch_size, start=3, workers=workers), expected)


def test_ranks_change_nothing(shards):
    expected = batches(shards, 10, start=5)
    local = [batches(shards, 10, start=5, rank=rank, world_size=2, workers=rank) for rank in (0, 1)]
    for whole, *parts in zip(expected, *local, strict=True):
        assert [part["index"].tolist() for part in parts] == [
            [i for i in whole["index"].tolist() if i % 2 == rank] for rank in (0, 1)
        ]
        order = torch.cat([part["index"] for part in parts]).argsort()
        for key in ("index", "hq", "lq"):
            assert torch.equal(torch.cat([part[key] for part in parts])[order], whole[key])


@pytest.mark.parametrize("start", [8, 21, 56, 3 * 50 + 1])
def test_a_later_start_continues_the_same_stream(shards, start):
    whole = batches(shards, (start + 24) // 8 + 1)
    later = batches(shards, 2, start=start)
    for key in ("index", "hq", "lq"):
        joined = torch.cat([batch[key] for batch in whole])
        assert torch.equal(torch.cat([batch[key] for batch in later]), joined[start : start + 16])


def test_another_seed_gives_another_stream(shards):
    [a], [b] = batches(shards, 1), batches(shards, 1, seed=1)
    assert not torch.equal(a["hq"], b["hq"])


def test_a_sample_follows_from_its_seed_and_number():
    rng = np.random.default_rng(0)
    preset = load_preset("dit4sr")
    raw = RawSample("here", rng.integers(0, 256, (40, 44, 3), dtype=np.uint8), "a caption")
    options = {"seed": 7, "crop": 32, "preset": preset, "augmentation": PLAIN, "prompt_drop": 0.25}
    samples = [make_sample(raw, index=i, **options) for i in range(400)]
    again = make_sample(raw, index=5, **options)
    np.testing.assert_array_equal(again["hq"], samples[5]["hq"])
    np.testing.assert_array_equal(again["lq"], samples[5]["lq"])
    dropped = np.mean([sample["prompt"] == "" for sample in samples])
    assert abs(dropped - 0.25) < 0.09  # four standard deviations
    assert {sample["prompt"] for sample in samples} == {"", "a caption"}

    # Every place and both directions occur, and the pair is the degradation of exactly that crop.
    found = set()
    for sample in samples:
        seed = sample_seed(7, sample["index"], "degradation")
        for top, left, flip in itertools.product(range(9), range(13), (False, True)):
            crop = raw.image[top : top + 32, left : left + 32]
            crop = np.ascontiguousarray(crop[:, ::-1] if flip else crop)
            # The sharpened target is near its crop and far from every other of this noise image.
            if np.abs(crop.astype(int) - sample["hq"].transpose(1, 2, 0)).mean() < 40:
                hq, lq = degrade(crop, preset, seed)
                np.testing.assert_array_equal(hq.transpose(2, 0, 1), sample["hq"])
                np.testing.assert_array_equal(lq.transpose(2, 0, 1), sample["lq"])
                found.add((top, left, flip))
                break
        else:
            pytest.fail(f"no crop gives sample {sample['index']}")
        if sample["index"] == 60:
            break
    assert {flip for _, _, flip in found} == {False, True}
    assert len(found) > 40
    assert {top for top, _, _ in found} == set(range(9))


def test_the_margin_is_degraded_and_cut_off():
    rng = np.random.default_rng(0)
    preset = load_preset("dit4sr")
    raw = RawSample("here", rng.integers(0, 256, (48, 48, 3), dtype=np.uint8), "")
    places = set()
    for index in range(60):
        sample = make_sample(
            raw,
            seed=7,
            index=index,
            crop=32,
            preset=preset,
            augmentation=Augmentation(margin=16, turns=False, recolour=0, invert=0),
            prompt_drop=0,
        )
        candidates = [raw.image, np.ascontiguousarray(raw.image[:, ::-1])]
        pairs = [degrade(patch, preset, sample_seed(7, index, "degradation")) for patch in candidates]
        (place,) = [
            (y, x)
            for (hq, lq), y, x in itertools.product(pairs, range(5), range(5))
            if np.array_equal(hq[4 * y : 4 * y + 32, 4 * x : 4 * x + 32].transpose(2, 0, 1), sample["hq"])
            and np.array_equal(lq[y : y + 8, x : x + 8].transpose(2, 0, 1), sample["lq"])
        ]
        places.add(place)
    assert {y for y, _ in places} == {x for _, x in places} == set(range(5))


def test_augmentation_turns_recolours_and_inverts():
    rng = np.random.default_rng(0)
    patch = rng.integers(0, 256, (16, 16, 3), dtype=np.uint8)
    turned = Augmentation(margin=0, turns=True, recolour=0, invert=0)
    squares = {
        np.ascontiguousarray(np.rot90(flipped, k)).tobytes() for flipped in (patch, patch[:, ::-1]) for k in range(4)
    }
    assert {turned.apply(patch, 0, index).tobytes() for index in range(200)} == squares
    inverted = Augmentation(margin=0, turns=False, recolour=0, invert=1).apply(patch, 0, 3)
    plain = Augmentation(margin=0, turns=False, recolour=0, invert=0).apply(patch, 0, 3)
    np.testing.assert_array_equal(inverted, 255 - plain)
    recoloured = Augmentation(margin=0, turns=False, recolour=1, invert=0)
    first, again, other = (recoloured.apply(patch, 0, index) for index in (5, 5, 6))
    np.testing.assert_array_equal(first, again)
    assert first.shape == patch.shape and not np.array_equal(first, other)
    with pytest.raises(UserError, match="multiple of 4"):
        Augmentation.from_config({"margin": 6, "turns": True, "recolour": 0, "invert": 0})
    with pytest.raises(UserError, match="invert"):
        Augmentation.from_config({"margin": 0, "turns": True, "recolour": 0})


def test_a_small_image_is_unusable():
    raw = RawSample("here", np.zeros((31, 44, 3), np.uint8), "")
    with pytest.raises(UnusableSample, match="smaller than the crop and its margin, 32 px"):
        make_sample(raw, seed=0, index=0, crop=32, preset=load_preset("dit4sr"), augmentation=PLAIN, prompt_drop=0)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_users_error_comes_back_as_one_line(shards, workers):
    before = set(multiprocessing.active_children())  # another module's, where it has left one to the collector
    with pytest.raises(
        UserError, match="too many unusable training samples .smaller than the crop and its margin, 64 px"
    ) as error:
        batches(shards, 1, crop=64, workers=workers)
    assert "\n" not in str(error.value)
    # A worker left behind waits for work, and this process at its end for it; one that was told to end takes a moment.
    deadline = time.monotonic() + 300
    while left := set(multiprocessing.active_children()) - before:
        assert time.monotonic() < deadline, left
        time.sleep(0.05)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"workers": 3}, r"must divide data.lanes=16: data.workers may be 0, 1, 2, 4, 8, 16, or set"),
        ({"workers": 4, "world_size": 8}, r"8 rank\(s\) x 4 worker\(s\).*may be 0, 1, 2, or set"),
        ({"world_size": 3, "batch_size": 8}, "make it a multiple of 3"),
        ({"crop": 30}, "multiple of 4"),
        ({"batch_size": 0}, "at least 1"),
    ],
)
def test_numbers_that_do_not_fit_are_named(shards, changes, message):
    with pytest.raises(UserError, match=message):
        batches(shards, 1, **changes)


def module(tmp_path, **changes):
    data = {
        "name": "embedded",
        "batch_size": 4,
        "workers": 0,
        "lanes": 16,
        "shuffle_buffer": 8,
        "prompt_drop": 0.2,
        "augmentation": {"margin": 0, "turns": False, "recolour": 0, "invert": 0},
    }
    options = {"seed": 0, "crop": 48, "paths": {"data": str(tmp_path)}}
    return SRDataModule({**data, **changes}, load_preset("dit4sr"), **options)


def test_the_embedded_default_needs_nothing(tmp_path):
    datamodule = module(tmp_path)
    datamodule.prepare_data()
    first, second = itertools.islice(datamodule.train_dataloader(), 2)
    assert first["hq"].shape == (4, 3, 48, 48)
    datamodule.start = 4
    assert_equal([next(iter(datamodule.train_dataloader()))], [second])
    datamodule.repeat_first_batch = True
    assert_equal(list(itertools.islice(datamodule.train_dataloader(), 2)), [second, second])
    pairs = validation_pairs(tmp_path / "embedded" / "benchmark")
    assert [pair["name"] for pair in pairs] == ["chelsea_0", "coffee_0", "coffee_1", "rocket_0", "rocket_1"]
    for pair in pairs:
        assert (pair["lq"].shape, pair["hq"].shape) == ((64, 64, 3), (256, 256, 3))
        assert pair["prompt"].endswith(".")


def test_more_workers_than_cores_are_no_warning(shards):
    """How many there are is the config's choice; torch would say so twice."""
    workers = (os.cpu_count() or 1) + 1
    sources = (SourceSettings("test", 1.0, "synthetic", tuple(Shard(str(shard)) for shard in shards)),)
    options = {"seed": 0, "crop": 32, "batch_size": 8, "prompt_drop": 0.2, "lanes": workers, "workers": workers}
    settings = LoaderSettings(sources=sources, preset=load_preset("dit4sr"), augmentation=PLAIN, **options)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        loader = TrainingBatches(settings)._loader()
        loader.check_worker_number_rationality()  # as every iteration does
        with pytest.raises(UserWarning, match="another"):
            warnings.warn("another", stacklevel=1)
    assert loader.num_workers == workers


def test_own_shards(tmp_path, shards):
    datamodule = module(tmp_path, name="shards", shards=str(shards[0].parent))
    datamodule.crop = 32
    assert_equal([next(iter(datamodule.train_dataloader()))], batches(shards, 1, batch_size=4, shuffle_buffer=8))
    with pytest.raises(UserError, match="data.shards="):
        module(tmp_path, name="shards", shards=None)
    with pytest.raises(UserError, match="choose one of embedded, shards, paired, paired_latent"):
        module(tmp_path, name="imagenet")
    with pytest.raises(UserError, match="python prepare.py"):
        module(tmp_path, name="shards", shards=str(tmp_path / "empty")).train_dataloader()


def test_validation_pairs_go_by_name(tmp_path):
    with pytest.raises(UserError, match="run python prepare.py"):
        validation_pairs(tmp_path)
    for name, value in {"b": 3, "a": 5}.items():
        write_png(tmp_path / "test_LR" / f"{name}.png", np.full((4, 4, 3), value, np.uint8))
    write_png(tmp_path / "test_HR" / "a.png", np.full((16, 16, 3), 50, np.uint8))
    with pytest.raises(UserError, match="pair b of"):
        validation_pairs(tmp_path)
    write_png(tmp_path / "test_HR" / "b.png", np.full((16, 16, 3), 30, np.uint8))
    pairs = validation_pairs(tmp_path)
    assert [(p["name"], p["lq"][0, 0, 0], p["hq"][0, 0, 0], p["prompt"]) for p in pairs] == [
        ("a", 5, 50, ""),
        ("b", 3, 30, ""),
    ]

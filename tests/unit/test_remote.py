"""Shards over a real HTTP server that fails: the stream is the local one, bit for bit."""

import dataclasses
import itertools
from collections import Counter

import numpy as np
import pytest
import torch
from flaky_server import one_in_ten, serving

from dit4sr.data.augmentation import Augmentation
from dit4sr.data.degradations import load_preset
from dit4sr.data.loading import LoaderSettings, TrainingBatches
from dit4sr.data.locations import locate_shards
from dit4sr.data.remote import RemoteSettings, RemoteStore, Shard, Unavailable
from dit4sr.data.shards import ShardSample, write_manifest, write_shards
from dit4sr.data.sources import SourceSettings
from dit4sr.errors import UserError

SAMPLES, SHARDS = 96, 12
CHUNK = 16000  # bytes; a shard has about 50000


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """96 samples of 32 × 32 px in 12 shards, with a manifest in ``train`` and without one in ``bare``."""
    root = tmp_path_factory.mktemp("served")
    rng = np.random.default_rng(0)
    samples = [
        ShardSample(f"{n:03d}", rng.integers(0, 256, (32, 32, 3), dtype=np.uint8), f"caption {n}", {})
        for n in range(SAMPLES)
    ]
    write_manifest(root / "train", write_shards(root / "train", samples, SAMPLES // SHARDS), {})
    write_shards(root / "bare", samples, SAMPLES // SHARDS)
    return root


def remote(tmp_path, **changes):
    """Ranges far smaller than a shard, so that a shard is many requests, and no long waits."""
    return RemoteSettings(**{"cache": tmp_path / "cache", "chunk": CHUNK, "first_wait": 0.01, **changes})


def stream(shards, settings, samples, **changes):
    options = {"seed": 3, "crop": 32, "batch_size": 8, "prompt_drop": 0, "shuffle_buffer": 4, **changes}
    loader = LoaderSettings(
        sources=(SourceSettings("test", 1.0, "synthetic", shards),),
        preset=load_preset("light"),
        augmentation=Augmentation(margin=0, turns=False, recolour=0, invert=0),
        remote=settings,
        **options,
    )
    batches = list(itertools.islice(TrainingBatches(loader), samples // 8))
    joined = {key: torch.cat([batch[key] for batch in batches]) for key in ("index", "hq", "lq")}
    return joined | {"prompt": [prompt for batch in batches for prompt in batch["prompt"]]}


def assert_same(a, b):
    assert a["prompt"] == b["prompt"]
    for key in ("index", "hq", "lq"):
        assert torch.equal(a[key], b[key])


def local(folder, settings):
    return locate_shards(folder / "train", RemoteStore(settings))


@pytest.mark.parametrize("ranges", [True, False])
@pytest.mark.parametrize(("place", "workers"), [("train", 0), ("bare/train-{000000..000011}.tar", 2)])
def test_one_request_in_ten_fails_and_nothing_is_lost_or_doubled(tmp_path, folder, place, workers, ranges):
    settings = remote(tmp_path)
    expected = stream(local(folder, settings), settings, 2 * SAMPLES)
    with serving(folder, one_in_ten, ranges=ranges) as log:
        shards = locate_shards(f"{log.url}/{place}", RemoteStore(settings))
        got = stream(shards, settings, 2 * SAMPLES, workers=workers)
    assert_same(got, expected)
    for number in (0, 1):  # 16 lanes of 6 samples each: a pass is 96 samples in a row
        seen = Counter(got["prompt"][number * SAMPLES : (number + 1) * SAMPLES])
        assert seen == Counter(f"caption {n}" for n in range(SAMPLES))
    fetched = [path for path in log.asked if path.endswith(".tar")]
    failed = len(log.refused) + len(log.cut)
    assert failed == sum((number + 3) // 10 for number in log.methods.values())  # each 7th, 17th, …
    assert log.cut and (log.refused or not ranges)
    assert set(Counter(fetched)) == {f"/{place.split('/')[0]}/train-{k:06d}.tar" for k in range(SHARDS)}
    if ranges:
        assert len(fetched) > 3 * SHARDS  # shards came in several ranges each


def test_a_cut_range_alone_is_asked_for_again(tmp_path, folder):
    shard = folder / "train" / "train-000000.tar"
    ranges = -(-shard.stat().st_size // CHUNK)
    settings = remote(tmp_path)
    with serving(folder, lambda number, path: "cut" if number == 3 else "serve") as log:
        store = RemoteStore(settings)
        path = store.fetch(Shard(f"{log.url}/train/train-000000.tar"))
    assert path.read_bytes() == shard.read_bytes()
    assert len(log.cut) == 1 and store.failures == 1
    assert len(log.asked) == 1 + ranges + 1  # its size, its ranges, and one of them twice


def test_a_later_start_fetches_only_what_it_needs(tmp_path, folder):
    settings = remote(tmp_path)
    expected = stream(local(folder, settings), settings, 6 * SAMPLES)
    with serving(folder, one_in_ten) as log:
        shards = locate_shards(f"{log.url}/train", RemoteStore(settings))
        got = stream(shards, settings, 8, start=5 * SAMPLES + 8)
        # Five passes were left out by the manifest's counts alone.
        assert len(set(path for path in log.asked if path.endswith(".tar"))) <= SHARDS
    assert_same(got, {k: v[5 * SAMPLES + 8 : 5 * SAMPLES + 16] for k, v in expected.items()})


def test_two_ranks_share_the_stream_and_the_cache(tmp_path, folder):
    settings = remote(tmp_path)
    expected = stream(local(folder, settings), settings, SAMPLES)
    with serving(folder, one_in_ten) as log:
        shards = locate_shards(f"{log.url}/train", RemoteStore(settings))
        parts = [stream(shards, settings, SAMPLES, rank=rank, world_size=2) for rank in (0, 1)]
        asked = Counter(path for path in log.asked if path.endswith(".tar"))
    assert len(parts[0]["index"]) == SAMPLES // 2
    order = torch.cat([part["index"] for part in parts]).argsort()
    assert torch.equal(torch.cat([part["lq"] for part in parts])[order], expected["lq"])
    size = (folder / "train" / "train-000000.tar").stat().st_size
    assert max(asked.values()) < 2 * -(-size // CHUNK)  # the second rank found them in the cache


def test_a_shard_that_is_gone_is_stood_in_for(tmp_path, folder, capfd):
    settings = remote(tmp_path, retries=2)
    whole = stream(local(folder, settings), settings, 2 * SAMPLES)
    with serving(folder, lambda number, path: "cut" if "000004" in path else "serve") as log:
        shards = locate_shards(f"{log.url}/train", RemoteStore(settings))
        got = stream(shards, settings, 2 * SAMPLES, max_bad_share=0.1)
    lost = {f"caption {n}" for n in range(32, 40)}
    for mine, other in zip(got["prompt"], whole["prompt"], strict=True):
        assert mine == other or other in lost
        assert mine not in lost
    warnings = capfd.readouterr().err
    assert "unreadable shard skipped (1 of 12 so far)" in warnings and "train-000004.tar" in warnings
    with serving(folder, lambda number, path: "cut" if "000004" in path else "serve") as log:
        shards = locate_shards(f"{log.url}/train", RemoteStore(settings))
        with pytest.raises(
            UserError, match=r"1 of 12 shards cannot be read, more than data.max_bad_share=0.05.*000004"
        ):
            stream(shards, remote(tmp_path / "other", retries=2), SAMPLES)


def test_a_missing_shard_without_a_manifest_is_left_out_and_not_asked_for_again(tmp_path, folder, capfd):
    settings = remote(tmp_path)
    with serving(folder) as log:
        names = locate_shards(f"{log.url}/bare/train-{{000000..000012}}.tar", RemoteStore(settings))
        got = stream(names, settings, 2 * SAMPLES, max_bad_share=0.1)
        assert 1 <= log.asked.count("/bare/train-000012.tar") <= 2
    assert set(got["prompt"]) == {f"caption {n}" for n in range(SAMPLES)}
    assert "1 of 13 so far" in capfd.readouterr().err


def test_a_dead_server_is_one_line(tmp_path, folder):
    settings = remote(tmp_path, retries=1)
    with serving(folder) as log:
        shards = locate_shards(f"{log.url}/train", RemoteStore(settings))
    for attempt in (
        lambda: stream(shards, settings, 8, workers=1),
        lambda: stream(shards, settings, 8, max_bad_share=1.0),
        lambda: locate_shards(f"{log.url}/train", RemoteStore(settings)),
    ):
        with pytest.raises(UserError) as error:
            attempt()
        assert "\n" not in str(error.value)


def test_bytes_that_are_not_the_manifests_are_refused(tmp_path, folder):
    settings = remote(tmp_path)
    with serving(folder) as log:
        store = RemoteStore(settings)
        (shard, *_) = locate_shards(f"{log.url}/train", store)
        with pytest.raises(Unavailable, match="not those that the manifest lists"):
            store.fetch(dataclasses.replace(shard, sha256="0" * 64))
    assert not list((tmp_path / "cache").glob("*.tar"))


def test_a_replaced_file_is_fetched_again(tmp_path):
    served = tmp_path / "served"
    served.mkdir()
    settings = remote(tmp_path)
    with serving(served) as log:
        for content in (b"a" * 12000, b"b" * 12000):
            (served / "x.tar").write_bytes(content)
            assert RemoteStore(settings).fetch(Shard(f"{log.url}/x.tar")).read_bytes() == content


def test_the_cache_is_bounded_and_what_was_deleted_comes_again(tmp_path, folder):
    size = (folder / "bare" / "train-000000.tar").stat().st_size
    settings = remote(tmp_path, cache_bytes=6 * size + 100)
    expected = stream(local(folder, settings), settings, SAMPLES)
    with serving(folder, one_in_ten) as log:
        got = stream(locate_shards(f"{log.url}/train", RemoteStore(settings)), settings, SAMPLES)
    assert_same(got, expected)
    assert len(list((tmp_path / "cache").glob("*.tar"))) <= 6


@pytest.mark.parametrize(
    ("place", "message"),
    [
        ("pipe:cat x.tar", "runs a shell command and is refused"),
        (" pipe:curl -s http://x/y.tar", "runs a shell command"),
        ("ftp://host/x.tar", "and from nothing else"),
        ("simplecache::http://host/x.tar", "and from nothing else"),
        ("zip://x::http://host/a.zip", "and from nothing else"),
        ("nowhere/{000..003.tar", "its braces do not match"),
        ([], "empty list"),
    ],
)
def test_places_that_are_never_read(tmp_path, place, message):
    with pytest.raises(UserError, match=message):
        locate_shards(place, RemoteStore(remote(tmp_path)))


def test_places_in_all_their_forms(tmp_path, folder):
    store = RemoteStore(remote(tmp_path))
    names = [f"train-{k:06d}.tar" for k in range(SHARDS)]
    train = [str(folder / "train" / name) for name in names]

    def found(place):
        return [shard.location for shard in locate_shards(place, store)]

    assert found(str(folder)) == found(folder / "train") == found(str(folder / "train" / "*.tar")) == train
    assert found(f"file://{folder}/train/train-000003.tar") == train[3:4]
    assert found(str(folder / "train" / "train-{000002..000004}.tar")) == train[2:5]
    assert found([train[5], str(folder / "bare")]) == [train[5], *(str(folder / "bare" / name) for name in names)]
    with pytest.raises(UserError, match="twice"):
        found([train[5], str(folder / "train")])
    with serving(folder) as log:
        shards = locate_shards(f"{log.url}/train/", store)
        assert [shard.location for shard in shards] == [f"{log.url}/train/{name}" for name in names]
        assert {shard.samples for shard in shards} == {8} and all(shard.sha256 for shard in shards)
        assert found(f"{log.url}/") == found(f"{log.url}/train")
        assert found(f"{log.url}/bare/train-{{000000..000001}}.tar?key=a") == [
            f"{log.url}/bare/{name}?key=a" for name in names[:2]
        ]
        with pytest.raises(UserError, match="name the shards as"):
            found(f"{log.url}/bare")

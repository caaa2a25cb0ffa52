"""Sources by weight, orders of the stream, and precomputed latents and prompts."""

import itertools
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from flaky_server import one_in_ten, serving

from dit4sr.data.augmentation import Augmentation
from dit4sr.data.degradations import load_preset
from dit4sr.data.loading import LoaderSettings, TrainingBatches
from dit4sr.data.locations import locate_shards
from dit4sr.data.mixture import BLOCK, source_numbers
from dit4sr.data.remote import RemoteSettings, RemoteStore
from dit4sr.data.shards import ShardSample, write_manifest, write_shards
from dit4sr.data.sources import SourceSettings, check_sources
from dit4sr.data.stream import lane_references
from dit4sr.errors import UserError


@pytest.mark.parametrize("weights", [(0.7, 0.3), (5, 1, 2)])
def test_positions_are_drawn_in_proportion_and_can_be_left_out(weights):
    n = 3 * BLOCK + 17
    _, whole = source_numbers(weights, lane=3, seed=1)
    drawn = list(itertools.islice(whole, n))
    for k, weight in enumerate(weights):
        share = weight / sum(weights)
        # Five standard deviations of a binomial.
        assert abs(drawn.count(k) / n - share) < 5 * (share * (1 - share) / n) ** 0.5
    for start in (0, 1, BLOCK - 1, BLOCK, 2 * BLOCK + 5):
        passed, later = source_numbers(weights, lane=3, seed=1, start=start)
        assert passed == [drawn[:start].count(k) for k in range(len(weights))]
        assert list(itertools.islice(later, 50)) == drawn[start : start + 50]
    _, other = source_numbers(weights, lane=4, seed=1)
    assert list(itertools.islice(other, 50)) != drawn[:50]


@pytest.mark.parametrize("counts", [[16], [7, 0, 5, 11], [1, 2]])
@pytest.mark.parametrize("lanes", [1, 4, 16])
def test_sequential_is_the_data_as_listed(counts, lanes):
    def lane(number, start=0):
        return lane_references(
            len(counts),
            counts.__getitem__,
            lanes=lanes,
            lane=number,
            seed=0,
            shuffle_buffer=8,
            order="sequential",
            start=start,
        )

    listed = [(shard, j) for shard, count in enumerate(counts) for j in range(count)]
    streams = [lane(number) for number in range(lanes)]
    assert [next(streams[i % lanes]) for i in range(3 * len(listed))] == 3 * listed
    for start in (1, 5, 40):
        later = lane(lanes - 1, start)
        assert next(later) == listed[(start * lanes + lanes - 1) % len(listed)]


def test_resampled_draws_shards_with_replacement():
    counts, lanes = [4] * 16, 4

    def lane(number, start=0):
        return lane_references(
            16, counts.__getitem__, lanes=lanes, lane=number, seed=0, shuffle_buffer=1, order="resampled", start=start
        )

    drawn = [reference for number in range(lanes) for reference in itertools.islice(lane(number), 400)]
    seen = Counter(shard for shard, _ in drawn)
    assert set(seen) == set(range(16)) and max(seen.values()) > min(seen.values())
    first_pass = [reference for number in range(lanes) for reference in itertools.islice(lane(number), 16)]
    assert len(set(first_pass)) < 64  # 16 draws of 16 shards miss some
    assert list(itertools.islice(lane(2, 37), 20)) == list(itertools.islice(lane(2), 57))[37:]


def test_lanes_without_any_sample_end():
    for order in ("shuffled", "resampled", "sequential"):
        with pytest.raises(UserError, match="no sample in any shard"):
            next(lane_references(3, lambda shard: 0, lanes=4, lane=1, seed=0, shuffle_buffer=4, order=order))


def write(folder, count, value, per_shard=8):
    samples = (ShardSample(f"{n:03d}", np.full((32, 32, 3), value, np.uint8), f"{value}/{n}", {}) for n in range(count))
    write_manifest(folder, write_shards(folder, samples, per_shard), {})


def stream(sources, settings, samples, **changes):
    options = {"seed": 3, "crop": 32, "batch_size": 8, "prompt_drop": 0, "shuffle_buffer": 4, **changes}
    loader = LoaderSettings(
        sources=sources,
        preset=load_preset("light"),
        augmentation=Augmentation(margin=0, turns=False, recolour=0, invert=0),
        remote=settings,
        **options,
    )
    return list(itertools.islice(TrainingBatches(loader), samples // 8))


def joined(batches, key):
    values = [batch[key] for batch in batches]
    return list(itertools.chain(*values)) if key == "prompt" else torch.cat(values)


def test_a_mixture_is_one_stream_for_any_workers_ranks_and_servers(tmp_path):
    write(tmp_path / "a", 40, 50)
    write(tmp_path / "b", 24, 200)
    settings = RemoteSettings(cache=tmp_path / "cache", chunk=4000, first_wait=0.01)
    store = RemoteStore(settings)

    def sources(a, b):
        return (
            SourceSettings("a", 0.75, "synthetic", locate_shards(a, store)),
            SourceSettings("b", 0.25, "synthetic", locate_shards(b, store)),
        )

    local = sources(str(tmp_path / "a"), str(tmp_path / "b"))
    expected = stream(local, settings, 640)
    prompts = joined(expected, "prompt")
    assert [prompt.split("/")[0] for prompt in prompts] == [
        ("50", "200")[source] for source in joined(expected, "source").tolist()
    ]
    assert prompts.count("") == 0
    share = sum(prompt.startswith("50/") for prompt in prompts) / 640
    assert abs(share - 0.75) < 5 * (0.75 * 0.25 / 640) ** 0.5
    # Each source is passed through evenly, whatever the draws of the sources.
    times = Counter(prompts)
    assert len(times) == 64
    for value, count in (("50", 40), ("200", 24)):
        each = [n for prompt, n in times.items() if prompt.startswith(f"{value}/")]
        assert len(each) == count

    later = stream(local, settings, 64, start=200, workers=2)
    assert joined(later, "prompt") == prompts[200:264]
    ranks = [stream(local, settings, 64, rank=rank, world_size=2, workers=rank * 4) for rank in (0, 1)]
    order = torch.cat([joined(rank, "index") for rank in ranks]).argsort()[:64]
    assert torch.equal(torch.cat([joined(rank, "lq") for rank in ranks])[order], joined(expected, "lq")[:64])
    with serving(tmp_path, one_in_ten) as log:
        mixed = sources(f"{log.url}/a", str(tmp_path / "b"))
        got = stream(mixed, settings, 640)
    assert joined(got, "prompt") == prompts and torch.equal(joined(got, "lq"), joined(expected, "lq"))
    assert log.cut


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sources": None}, "needs data.shards="),
        ({"shards": "x", "sources": [{"shards": "y"}]}, "not both"),
        ({"sources": [{"shards": "pipe:ls"}]}, "refused"),
        ({"sources": [{"shards": "nowhere/x"}]}, "python prepare.py"),
        ({"sources": [{"shards": "s3://a/b.tar", "weight": 0}]}, "above 0"),
        ({"sources": [{"shards": "s3://a/b.tar", "weight": "much"}]}, "above 0"),
        ({"sources": [{"shards": "s3://a/b.tar", "wieght": 1}]}, r"data.sources\[0\] must be"),
        ({"sources": [{"shards": "s3://a/b.tar", "name": "x"}, {"shards": "gs://a", "name": "x"}]}, "same name"),
        ({"sources": [{"shards": []}]}, "is empty"),
    ],
)
def test_sources_that_are_wrong_are_named(changes, message):
    with pytest.raises(UserError, match=message):
        check_sources({"name": "shards", "shards": None, "sources": None, **changes})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"shards": "/photos"}, "data.shards=/photos needs data=shards"),
        ({"shards": ["data/embedded/train", "s3://a/b"]}, "data.shards=s3://a/b needs data=shards"),
        ({"sources": [{"shards": "/photos"}]}, "data.sources needs data=shards"),
        ({"lq": "/photos"}, "data.lq needs data=paired"),
        ({"name": "shards", "hq": "/photos"}, "data.hq needs data=paired"),
    ],
)
def test_data_that_would_not_be_trained_on_are_refused(changes, message):
    own = {"name": "embedded", "shards": "data/embedded/train", "sources": None}
    check_sources(own, Path("data/embedded/train"))
    with pytest.raises(UserError, match=message):
        check_sources({**own, **changes}, Path("data/embedded/train"))

"""The stream: lanes part every pass, only (seed, lane) matters, others stand in for unusable samples."""

import io
import itertools
import pickle
import tarfile
from pathlib import Path

import numpy as np
import pytest

from dit4sr.data.reader import RawSample, ShardReader
from dit4sr.data.shard_index import index_shard
from dit4sr.data.shards import ShardSample, find_shards, write_shards
from dit4sr.data.stream import Feed, lane_part, lane_references, numbered_samples, stripe_count
from dit4sr.data.tally import Tally, UnusableSample
from dit4sr.errors import UserError


def references(counts, lane, lanes, *, seed=0, shuffle_buffer=8, start=0):
    return lane_references(
        len(counts),
        counts.__getitem__,
        lanes=lanes,
        lane=lane,
        seed=seed,
        shuffle_buffer=shuffle_buffer,
        start=start,
    )


def everything(counts):
    return {(shard, j) for shard, count in enumerate(counts) for j in range(count)}


@pytest.mark.parametrize(("shards", "lanes", "stripes"), [(1, 16, 16), (3, 16, 16), (12, 16, 4), (32, 16, 1)])
def test_stripes_make_the_virtual_shards_a_multiple_of_the_lanes(shards, lanes, stripes):
    assert stripe_count(shards, lanes) == stripes
    assert shards * stripes % lanes == 0


@pytest.mark.parametrize("counts", [[16], [7, 5, 11], [3] * 16, [40, 1, 2, 9, 30, 8]])
@pytest.mark.parametrize("lanes", [1, 4, 16])
def test_the_lanes_part_every_pass_exactly(counts, lanes):
    streams = [references(counts, lane, lanes) for lane in range(lanes)]
    for pass_number in range(3):
        seen = []
        for lane, stream in enumerate(streams):
            part = lane_part(len(counts), lanes=lanes, lane=lane, seed=0, pass_number=pass_number)
            stripes = stripe_count(len(counts), lanes)
            expected = [(s, j) for s, stripe in part for j in range(stripe, counts[s], stripes)]
            got = list(itertools.islice(stream, len(expected)))
            assert sorted(got) == sorted(expected)
            seen += got
        assert len(seen) == sum(counts)
        assert set(seen) == everything(counts)


def test_equal_shards_are_passed_through_in_step_by_the_global_numbers():
    """Where every lane's part has the same size, N consecutive global samples are one pass over N samples."""
    counts, lanes = [12, 12, 12, 12], 16  # 4 stripes of 3
    streams = [references(counts, lane, lanes) for lane in range(lanes)]
    numbered = [next(streams[i % lanes]) for i in range(3 * 48)]
    for start in (0, 48, 96):
        assert set(numbered[start : start + 48]) == everything(counts)
    assert numbered[:48] != numbered[48:96]


@pytest.mark.parametrize("start", [0, 1, 5, 6, 7, 23, 100, 1001])
def test_start_leaves_out_exactly_that_many(start):
    counts = [7, 5, 11]
    for lane in range(4):
        whole = list(itertools.islice(references(counts, lane, 4), start + 20))
        assert list(itertools.islice(references(counts, lane, 4, start=start), 20)) == whole[start:]


def test_the_shuffle_follows_from_seed_and_lane():
    def first(**options):
        return list(itertools.islice(references([200], 1, 2, **options), 90))

    assert first() == first()
    assert first() != first(seed=1)
    assert first(shuffle_buffer=1) == sorted(first(shuffle_buffer=1))
    assert first(shuffle_buffer=64) != sorted(first(shuffle_buffer=64))
    # A buffer of 8 lets a sample come at most 8 places early.
    assert all((j // 2) - place <= 8 for place, (_, j) in enumerate(first(shuffle_buffer=8)))


def write(folder: Path, images, samples_per_shard=8):
    write_shards(
        folder,
        (ShardSample(f"{n:04d}", image, f"caption {n}", {"n": n}) for n, image in enumerate(images)),
        samples_per_shard,
    )
    return find_shards(folder)


def numbered_images(n, side=8):
    return [np.full((side, side, 3), k, np.uint8) for k in range(n)]


def stream(shards, numbers, *, make=None, reports=None, max_bad_share=0.05, lanes=4):
    reports = [] if reports is None else reports
    tally = Tally(max_bad_share, reports.append)
    feed = Feed(ShardReader(shards, tally=tally), tally)
    make = make or (lambda raw, i: (i, int(raw.image[0, 0, 0]), raw.caption))
    return (each.sample for each in numbered_samples([feed], numbers, make, lanes=lanes, seed=0, shuffle_buffer=4))


def test_samples_come_back_as_written(tmp_path):
    shards = write(tmp_path, numbered_images(20))
    got = list(itertools.islice(stream(shards, itertools.count()), 60))
    assert [i for i, _, _ in got] == list(range(60))
    assert all(caption == f"caption {value}" for _, value, caption in got)
    assert {value for _, value, _ in got} == set(range(20))


def test_a_reader_opens_only_the_lanes_of_its_numbers(tmp_path):
    shards = write(tmp_path, numbered_images(32), samples_per_shard=2)  # 16 shards: one lane, one shard a pass
    everyone = list(itertools.islice(stream(shards, itertools.count(), lanes=16), 32))
    reader = ShardReader(shards)
    opened = []
    index = reader.index
    reader.index = lambda shard: (opened.append(shard), index(shard))[1]
    mine = numbered_samples(
        [Feed(reader, Tally(0, opened.append))],
        range(3, 32, 16),
        lambda raw, i: (i, int(raw.image[0, 0, 0]), raw.caption),
        lanes=16,
        seed=0,
        shuffle_buffer=4,
    )
    assert [each.sample for each in mine] == everyone[3::16]
    assert set(opened) == {s for s, _ in lane_part(16, lanes=16, lane=3, seed=0, pass_number=0)}


def break_image(shard: Path, number: int):
    entry = index_shard(shard)[number]
    data = bytearray(shard.read_bytes())
    data[entry.image.offset + entry.image.size // 2] ^= 0xFF
    shard.write_bytes(data)


def test_a_corrupt_sample_is_stood_in_for_and_reported(tmp_path):
    images = [np.random.default_rng(n).integers(0, 256, (8, 8, 3), dtype=np.uint8) for n in range(40)]
    shards = write(tmp_path, images)
    whole = list(itertools.islice(stream(shards, itertools.count()), 80))
    break_image(shards[2], 3)  # caption 19
    reports = []
    broken = list(itertools.islice(stream(shards, itertools.count(), reports=reports), 80))
    differing = [i for i in range(80) if whole[i] != broken[i]]
    assert [whole[i][2] for i in differing] == ["caption 19"] * len(differing)
    assert len(differing) == 2  # once a pass
    for i in differing:
        assert broken[i][1:] == whole[i + 4][1:]  # the next of the same lane
    assert len(reports) == 2
    assert "train-000002.tar, sample 0019: corrupt image" in reports[0]
    later = list(itertools.islice(stream(shards, itertools.count(7)), 60))
    assert later == broken[7:67]


def test_too_many_corrupt_samples_end_the_stream(tmp_path):
    images = [np.random.default_rng(n).integers(0, 256, (8, 8, 3), dtype=np.uint8) for n in range(40)]
    shards = write(tmp_path, images)
    for number in range(4):
        break_image(shards[number], 0)
    assert len(list(itertools.islice(stream(shards, itertools.count(), max_bad_share=0.2), 300))) == 300
    with pytest.raises(UserError, match=r"too many unusable.*corrupt image: \d+ of 1\d\d;"):
        list(itertools.islice(stream(shards, itertools.count()), 300))


def test_a_stream_without_any_usable_sample_ends(tmp_path):
    shards = write(tmp_path, numbered_images(20))

    def too_small(raw: RawSample, i: int):
        raise UnusableSample("smaller than the crop of 64 px", raw.where)

    with pytest.raises(UserError, match="smaller than the crop of 64 px"):
        next(stream(shards, itertools.count(), make=too_small))


class Trap:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


def add_member(shard: Path, name: str, data: bytes):
    with tarfile.open(shard, "a") as tar:
        info = tarfile.TarInfo(name)
        info.size = len(data)
        tar.addfile(info, io.BytesIO(data))


@pytest.mark.parametrize("name", ["0000.pyd", "0000.pkl", "0000.pth", "0000.meta.pickle", "0000.PT", "0000.npy"])
def test_a_pickle_is_refused_and_never_run(tmp_path, name):
    shards = write(tmp_path / "shards", numbered_images(4))
    trap = tmp_path / "trap"
    data = pickle.dumps(Trap(trap))
    if name.endswith("npy"):
        buffer = io.BytesIO()
        np.save(buffer, np.array([Trap(trap)], dtype=object), allow_pickle=True)
        data = buffer.getvalue()
    add_member(shards[0], name, data)
    with pytest.raises(UserError, match=rf"train-000000\.tar refused: its member {name}"):
        next(stream(shards, itertools.count()))
    assert not trap.exists()


def test_members_of_other_kinds_are_left_alone(tmp_path):
    shards = write(tmp_path, numbered_images(4))
    buffer = io.BytesIO()
    np.save(buffer, np.zeros(3))
    add_member(shards[0], "0003.npy", buffer.getvalue())
    add_member(shards[0], "0003.cls", b"7")
    assert {value for _, value, _ in itertools.islice(stream(shards, itertools.count()), 40)} == {0, 1, 2, 3}

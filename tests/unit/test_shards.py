"""The shard format: bytes, manifest, and what is refused."""

import hashlib
import io
import json
import struct
import tarfile
import zlib

import numpy as np
import pytest
import webdataset
from PIL import Image

from dit4sr.data.images import UnreadableImage, decode_image, encode_png, read_image
from dit4sr.data.shard_index import index_shard
from dit4sr.data.shards import (
    ShardSample,
    find_shards,
    read_manifest,
    write_manifest,
    write_shards,
)
from dit4sr.errors import UserError
from dit4sr.files import write_atomically


def samples(n):
    rng = np.random.default_rng(0)
    return [
        ShardSample(f"{k:03d}-photo", rng.integers(0, 256, (12, 10, 3), dtype=np.uint8), f"Größe {k}", {"k": k})
        for k in range(n)
    ]


def test_webdataset_reads_what_we_write(tmp_path):
    written = samples(5)
    infos = write_shards(tmp_path, iter(written), samples_per_shard=2)
    assert [(info.name, info.samples) for info in infos] == [
        ("train-000000.tar", 2),
        ("train-000001.tar", 2),
        ("train-000002.tar", 1),
    ]
    urls = [str(tmp_path / info.name) for info in infos]
    read = list(webdataset.WebDataset(urls, shardshuffle=False))
    assert [sample["__key__"] for sample in read] == [sample.key for sample in written]
    for sample, expected in zip(read, written, strict=True):
        np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(sample["png"]))), expected.image)
        assert sample["txt"].decode() == expected.caption
        assert json.loads(sample["json"]) == expected.origin


def test_bytes_are_reproducible_and_the_hashes_true(tmp_path):
    first = write_shards(tmp_path / "a", samples(5), 2)
    assert write_shards(tmp_path / "b", samples(5), 2) == first
    for info in first:
        data = (tmp_path / "a" / info.name).read_bytes()
        assert (hashlib.sha256(data).hexdigest(), len(data)) == (info.sha256, info.bytes)
        with tarfile.open(tmp_path / "a" / info.name) as tar:
            assert {(m.mtime, m.uid, m.gid, m.uname, m.gname) for m in tar} == {(0, 0, 0, "", "")}


def test_an_interrupted_shard_is_never_visible(tmp_path):
    def interrupted():
        yield from samples(3)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_shards(tmp_path, interrupted(), 2)
    assert [path.name for path in tmp_path.iterdir()] == ["train-000000.tar"]


def test_write_atomically_leaves_the_old_file_when_the_block_fails(tmp_path):
    path = tmp_path / "new folder" / "table.csv"
    with write_atomically(path) as temporary:
        temporary.write_text("old")
        assert temporary.suffix == ".csv"
        assert not path.exists()
    with pytest.raises(RuntimeError), write_atomically(path) as temporary:
        temporary.write_text("half")
        raise RuntimeError
    assert path.read_text() == "old"
    assert list(path.parent.iterdir()) == [path]


def test_find_shards_says_what_to_do(tmp_path):
    for nothing in (tmp_path, tmp_path / "missing", tmp_path / "*.tar"):
        with pytest.raises(UserError, match="python prepare.py"):
            find_shards(nothing)
    with pytest.raises(UserError, match="local"):
        find_shards("pipe:cat secret.tar")
    infos = write_shards(tmp_path / "train", samples(3), 2)
    expected = tuple(tmp_path / "train" / info.name for info in infos)
    assert (
        find_shards(tmp_path) == find_shards(tmp_path / "train") == find_shards(tmp_path / "t*" / "*.tar") == expected
    )
    write_manifest(tmp_path / "train", infos[:1], {})
    assert find_shards(tmp_path / "train") == expected[:1]
    expected[0].unlink()
    with pytest.raises(UserError, match="train-000000.tar is missing"):
        find_shards(tmp_path / "train")


def test_a_broken_manifest_or_shard_is_named(tmp_path):
    (tmp_path / "manifest.json").write_text('{"shards": 3}')
    with pytest.raises(UserError, match="manifest.json is not a manifest"):
        read_manifest(tmp_path)
    [info] = write_shards(tmp_path, samples(3), 8)
    shard = tmp_path / info.name
    data = shard.read_bytes()
    for broken in (b"not a tar" * 99, b"", *(data[: len(data) * k // 10] for k in range(1, 9))):
        shard.write_bytes(broken)
        with pytest.raises(UserError, match="train-000000.tar"):
            index_shard(shard)


def png_header(width, height):
    def chunk(kind, body):
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_decompression_bombs_and_other_formats_are_unreadable():
    for bomb in (png_header(60000, 60000), png_header(12000, 12000)):
        with pytest.raises(UnreadableImage):
            decode_image(bomb)
    with pytest.raises(UnreadableImage, match="megapixels"):
        decode_image(png_header(3000, 1000), max_pixels=10**6)
    gif = io.BytesIO()
    Image.new("RGB", (4, 4)).save(gif, "GIF")
    whole = encode_png(np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8))
    for data in (gif.getvalue(), b"", b"text", whole[: len(whole) // 2]):
        with pytest.raises(UnreadableImage):
            decode_image(data)


def test_unusual_images_become_rgb(tmp_path):
    ramp = np.arange(64, dtype=np.uint8).reshape(8, 8)
    Image.fromarray(ramp).save(tmp_path / "grey.png")
    Image.fromarray(ramp.astype(np.uint16) * 256 + 7).save(tmp_path / "grey16.png")
    rgba = np.dstack([ramp, ramp, ramp, ramp])
    Image.fromarray(rgba).save(tmp_path / "alpha.png")
    for name in ("grey", "grey16", "alpha"):
        np.testing.assert_array_equal(read_image(tmp_path / f"{name}.png"), np.dstack([ramp] * 3))
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was held upright
    Image.fromarray(np.dstack([ramp] * 3)[:4]).save(tmp_path / "turned.webp", exif=exif, lossless=True)
    np.testing.assert_array_equal(read_image(tmp_path / "turned.webp"), np.rot90(np.dstack([ramp] * 3)[:4], -1))

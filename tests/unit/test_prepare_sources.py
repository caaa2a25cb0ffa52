"""Every kind of source that `prepare` reads, and what it refuses."""

import io
import json
import os
import tarfile

import numpy as np
import pytest
from PIL import Image
from preparing import config, noise, samples, sources_of

from dit4sr.data.images import decode_image, encode_image, encode_png, write_png
from dit4sr.data.prepare import prepare
from dit4sr.data.shards import ShardSample, read_manifest, write_shards
from dit4sr.errors import UserError


def patch_lies_in(members, photos):
    """Whether the patch is what its .json says it is."""
    origin = json.loads(members["json"])
    left, top, right, bottom = origin["box"]
    np.testing.assert_array_equal(decode_image(members["png"]), photos[origin["source"]][top:bottom, left:right])


@pytest.fixture
def photos(tmp_path):
    folder = tmp_path / "photos"
    for k in range(5):
        write_png(folder / ("a", "b")[k % 2] / f"{k}.png", noise(k))
        (folder / ("a", "b")[k % 2] / f"{k}.txt").write_text(f"Caption {k}.", encoding="utf-8-sig")
    return folder


def test_folders_globs_braces_links_and_names(tmp_path, photos):
    (photos / "a" / "0.jpg").write_bytes(encode_image(noise(9), "jpeg"))  # another photo of the same stem
    (photos / "a" / "._0.png").write_bytes(b"resource fork of a Mac")
    (photos / "c").symlink_to(photos, target_is_directory=True)  # a loop
    (tmp_path / "elsewhere").mkdir()
    write_png(tmp_path / "elsewhere" / "linked.png", noise(7))
    (photos / "d").symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    assert prepare(config(tmp_path, source=str(photos))) == 0
    out = tmp_path / "data" / "photos"
    expected = ["a/0.jpg", "a/0.png", "a/2.png", "a/4.png", "b/1.png", "b/3.png", "d/linked.png"]
    assert sources_of(out) == [name for name in expected for _ in range(3)]
    texts = {json.loads(m["json"])["source"]: m["txt"].decode() for m in samples(out).values()}
    assert texts["a/0.jpg"] == texts["a/0.png"] == "Caption 0."
    assert texts["d/linked.png"] == ""
    for number, source in enumerate(
        (f"{photos}/*/[13].png", f"{photos}/b/{{1,3}}.png", f"{photos}/b", f"{photos}/**/b")
    ):
        assert prepare(config(tmp_path, source=source, out=str(tmp_path / f"g{number}"))) == 0
        assert sources_of(tmp_path / f"g{number}") == ["1.png"] * 3 + ["3.png"] * 3
    assert prepare(config(tmp_path, source=f"{photos}/a/4.png", out=str(tmp_path / "one"))) == 0
    assert set(sources_of(tmp_path / "one")) == {"4.png"}


def test_tar_shards_with_captions_and_a_broken_one(tmp_path, capsys):
    shards = tmp_path / "shards"
    images = {f"{k:03d}": noise(k) for k in range(5)}
    write_shards(shards, [ShardSample(key, image, f"Caption {key}.", {}) for key, image in images.items()], 2)
    cut = (shards / "train-000002.tar").read_bytes()
    (shards / "train-000003.tar").write_bytes(cut[: len(cut) // 2])
    assert prepare(config(tmp_path, source=str(shards), scales=[1])) == 1
    assert "skipped train-000003.tar: " in capsys.readouterr().out
    out = tmp_path / "data" / "shards"
    assert read_manifest(out / "train")["reasons"] == {"unreadable shard": 1}
    found = samples(out)
    assert len(found) == 15
    named = {f"train-{int(key) // 2:06d}/{key}": image for key, image in images.items()}
    for members in found.values():
        patch_lies_in(members, named)
        assert members["txt"].decode() == f"Caption {json.loads(members['json'])['source'].rpartition('/')[2]}."
    # Braces name shards too, and what was prepared can be prepared again.
    again = config(tmp_path, source=f"{shards}/train-{{000000..000001}}.tar", out=str(tmp_path / "braces"), scales=[1])
    assert prepare(again) == 0
    assert len(samples(tmp_path / "braces")) == 12
    assert prepare(config(tmp_path, source=str(out), patch=16, out=str(tmp_path / "twice"), duplicates="keep")) == 0
    assert len(samples(tmp_path / "twice")) == 45


def test_a_tar_with_a_pickle_is_refused_and_never_read(tmp_path):
    path = tmp_path / "shards" / "a.tar"
    path.parent.mkdir()
    with tarfile.open(path, "w") as tar:
        for name, data in (("0.png", encode_png(noise(0))), ("0.pickle", b"cos\nsystem\n(S'touch /tmp/owned'\ntR.")):
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    with pytest.raises(UserError, match=r"a\.tar refused: its member 0\.pickle may hold a pickle"):
        prepare(config(tmp_path, source=str(path)))
    assert not (tmp_path / "data").exists()


@pytest.fixture
def rows(tmp_path):
    datasets = pytest.importorskip("datasets")
    features = datasets.Features({"image": datasets.Image(), "caption": datasets.Value("string")})
    images = [{"bytes": encode_png(noise(k)), "path": None} for k in range(4)] + [{"bytes": b"broken", "path": None}]
    return datasets.Dataset.from_dict({"image": images, "caption": [f"Row {k}." for k in range(5)]}, features)


def test_a_data_set_that_save_to_disk_wrote(tmp_path, rows):
    rows.save_to_disk(tmp_path / "saved")
    source = f"hf:{tmp_path / 'saved'}"
    assert prepare(config(tmp_path, source=source, out=str(tmp_path / "out"), scales=[1])) == 1
    found = samples(tmp_path / "out")
    assert len(found) == 12
    for members in found.values():
        patch_lies_in(members, {f"train/{k}": noise(k) for k in range(4)})
        assert members["txt"].decode() == f"Row {json.loads(members['json'])['source'][-1]}."
    for changes, message in (
        ({"image": "picture"}, "hf.image=picture: the data set has the columns image, caption"),
        ({"streaming": True}, "hf.streaming=false"),
        ({"streaming": "perhaps"}, "hf.streaming=perhaps must be true or false"),
        ({"splits": "a"}, "hf has no splits"),
    ):
        hf = {**config(tmp_path)["hf"], **changes}
        with pytest.raises(UserError, match=message):
            prepare(config(tmp_path, source=source, hf=hf, out=str(tmp_path / "bad")))


def test_a_streamed_data_set_gives_the_same_patches(tmp_path, rows, monkeypatch):
    for number, chunk in enumerate((rows.select(range(3)), rows.select(range(3, 5)))):
        (tmp_path / "parquet").mkdir(exist_ok=True)
        chunk.to_parquet(tmp_path / "parquet" / f"train-{number:05d}-of-00002.parquet")
    source = f"hf:{tmp_path / 'parquet'}"
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    hf = config(tmp_path)["hf"]
    assert (
        prepare(
            config(tmp_path, source=source, hf={**hf, "streaming": True}, out=str(tmp_path / "streamed"), scales=[1])
        )
        == 1
    )
    streamed = samples(tmp_path / "streamed")
    assert len(streamed) == 12
    names = {f"train/{k // 3}/{k % 3}": noise(k) for k in range(4)}
    for members in streamed.values():
        patch_lies_in(members, names)
    with pytest.raises(UserError, match="hf.split=nothing"):
        prepare(config(tmp_path, source=source, hf={**hf, "split": "nothing"}))


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("nowhere", "is not a folder or file"),
        ("nowhere/*.png", "matches no folder, photo"),
        ("notes.pdf", "no photo .* and no shard"),
        ("pipe:cat x.tar", "runs a shell command"),
        ("https://example.org/a.tar", "local paths"),
        ("hf:", "names no data set"),
        ("{a", "braces do not match"),
        ("", "source is empty"),
    ],
)
def test_what_is_no_source(tmp_path, monkeypatch, source, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "notes.pdf").write_bytes(b"%PDF")
    with pytest.raises(UserError, match=message):
        prepare(config(tmp_path, source=source))


def test_a_grey_cmyk_and_turned_photo_are_as_decoded(tmp_path):
    folder = tmp_path / "odd"
    folder.mkdir()
    Image.fromarray(noise(0)).convert("CMYK").save(folder / "cmyk.jpg")
    Image.fromarray(noise(1)[..., 0]).save(folder / "grey.png")
    Image.fromarray(noise(2)).save(folder / "web.webp", lossless=True)
    (folder / "empty.png").write_bytes(b"")
    (folder / "gone.png").symlink_to(folder / "nothing")
    (folder / "self.png").symlink_to("self.png")
    assert prepare(config(tmp_path, source=str(folder), scales=[1])) == 1
    manifest = read_manifest(tmp_path / "data" / "odd" / "train")
    assert manifest["counts"]["photos"] == 3
    assert manifest["reasons"] == {"undecodable": 3}


def test_a_named_pipe_among_the_photos_is_not_waited_for(tmp_path, capsys):
    write_png(tmp_path / "photos" / "a.png", noise(0))
    os.mkfifo(tmp_path / "photos" / "pipe.png")
    assert prepare(config(tmp_path, source=str(tmp_path / "photos"), out=str(tmp_path / "out"))) == 1
    assert "skipped pipe.png: not a regular file" in capsys.readouterr().out

"""Fetching benchmarks: from a local server that speaks as the hub does, and unpacking with care."""

from __future__ import annotations

import hashlib
import io
import subprocess
import sys
import threading
import zipfile
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dit4sr.errors import UserError
from dit4sr.evaluation.fetching import fetch_benchmark, unpack

FOLDER = "RealSRVal_crop128"


def png(side: int, seed: int = 0) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.full((side, side, 3), seed, np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


def archive(count: int = 3, **extra: bytes) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        for i in range(count):
            file.writestr(f"sets/{FOLDER}/test_LR/Canon_{i:03}_LR4.png", png(128))
            file.writestr(f"sets/{FOLDER}/test_HR/Canon_{i:03}_LR4.png", png(512))
        file.writestr(f"sets/{FOLDER}/test_LR/Thumbs.db", b"x")
        file.writestr(f"__MACOSX/{FOLDER}/test_LR/._Canon_000_LR4.png", b"x")
        for name, data in extra.items():
            file.writestr(name, data)
    return buffer.getvalue()


def names(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def test_images_alone_are_unpacked_to_their_place(tmp_path: Path) -> None:
    (tmp_path / "a.zip").write_bytes(archive(2))
    unpack(tmp_path / "a.zip", tmp_path / "sets", FOLDER)
    kinds = [f"{FOLDER}/{kind}/Canon_{i:03}_LR4.png" for kind in ("test_HR", "test_LR") for i in range(2)]
    assert names(tmp_path / "sets") == kinds


@pytest.mark.parametrize(
    "member", [f"../{FOLDER}/x.png", f"/{FOLDER}/x.png", f"{FOLDER}/../../x.png", f"C:\\{FOLDER}\\x.png"]
)
def test_members_that_leave_the_folder_are_refused(tmp_path: Path, member: str) -> None:
    (tmp_path / "a.zip").write_bytes(archive(1, **{member: png(8)}))
    with pytest.raises(UserError, match="leaves its folder"):
        unpack(tmp_path / "a.zip", tmp_path / "sets", FOLDER)
    assert names(tmp_path) == ["a.zip"]


def test_links_and_other_archives_are_refused(tmp_path: Path) -> None:
    link = zipfile.ZipInfo(f"{FOLDER}/test_LR/evil.png")
    link.external_attr = 0o120777 << 16
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as file:
        file.writestr(link, "/etc/passwd")
    with pytest.raises(UserError, match="is a link"):
        unpack(tmp_path / "a.zip", tmp_path / "sets", FOLDER)
    (tmp_path / "b.zip").write_bytes(archive(1))
    with pytest.raises(UserError, match="holds no images below Other"):
        unpack(tmp_path / "b.zip", tmp_path / "sets", "Other")
    assert names(tmp_path) == ["a.zip", "b.zip"]


def test_a_damaged_archive_leaves_nothing(tmp_path: Path) -> None:
    data = bytearray(archive(2))
    at = data.index(b"IDAT")
    data[at + 6] ^= 255
    (tmp_path / "a.zip").write_bytes(bytes(data))
    with pytest.raises(zipfile.BadZipFile):
        unpack(tmp_path / "a.zip", tmp_path / "sets", FOLDER)
    assert names(tmp_path) == ["a.zip"]


class Hub(BaseHTTPRequestHandler):
    data = b""

    def do_HEAD(self) -> None:  # noqa: N802
        self.answer(body=False)

    def do_GET(self) -> None:  # noqa: N802
        self.answer(body=True)

    def answer(self, *, body: bool) -> None:
        found = (
            self.path.endswith(f"/resolve/main/{FOLDER}.zip") and "/datasets/Iceclear/StableSR-TestSets/" in self.path
        )
        self.send_response(200 if found else 404)
        if found:
            self.send_header("ETag", f'"{hashlib.sha256(self.data).hexdigest()}"')
            self.send_header("X-Repo-Commit", "0" * 40)
        self.send_header("Content-Length", str(len(self.data) if found else 0))
        self.end_headers()
        if found and body:
            self.wfile.write(self.data)

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def hub() -> Iterator[str]:
    Hub.data = archive(100)
    with ThreadingHTTPServer(("127.0.0.1", 0), Hub) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{running.server_port}"
        running.shutdown()


def test_a_benchmark_is_downloaded_from_the_hub(tmp_path: Path, hub: str) -> None:
    code = (
        "import sys; from pathlib import Path; from tiny_checkpoint import compose_verb; "
        "from omegaconf import OmegaConf; from dit4sr.evaluation.run import find_benchmark; "
        f"options = ['benchmark=realsr', 'benchmark.download=true', 'out=unused', 'paths.benchmarks={tmp_path}/sets']; "
        "config = OmegaConf.to_container(compose_verb('evaluate', *options), resolve=True); "
        "print(len(find_benchmark(config, set()).images), find_benchmark(config, set()).upscale)"
    )
    environment = {
        "HF_ENDPOINT": hub,
        "HF_HOME": str(tmp_path / "hf"),
        "HF_HUB_OFFLINE": "0",
        "HF_HUB_DISABLE_XET": "1",
    }
    import os

    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        env={**os.environ, **environment, "PYTHONPATH": str(Path(__file__).resolve().parents[1])},
        timeout=600,
        check=False,
    )
    assert done.stdout.split() == ["100", "4.0"], done.stderr[-2000:]
    assert not [path for path in (tmp_path / "sets").iterdir() if path.name.startswith(".")]


def test_without_a_network_it_is_said_what_to_put_where(tmp_path: Path) -> None:
    config = {
        "name": "realsr",
        "lq": str(tmp_path / FOLDER / "test_LR"),
        "source": "the archive",
        "hub": {"repo": "Iceclear/StableSR-TestSets", "file": f"{FOLDER}.zip", "folder": FOLDER},
    }
    with pytest.raises(UserError, match=f"could not be downloaded.*get the archive by hand.*{FOLDER} holds"):
        fetch_benchmark(config, tmp_path)  # HF_HUB_OFFLINE is set in the tests
    with pytest.raises(UserError, match="is on no hub: get the archive and put its images into"):
        fetch_benchmark({**config, "hub": None}, tmp_path)
    (tmp_path / FOLDER / "test_LR").mkdir(parents=True)
    (tmp_path / FOLDER / "test_LR" / "a.png").write_bytes(png(8))
    assert fetch_benchmark(config, tmp_path) is False
    # Said before anything large is downloaded, which could not be put in its place.
    with pytest.raises(UserError, match=f"{FOLDER} is there already, but .*test_HR holds nothing: move it away"):
        fetch_benchmark({**config, "hq": str(tmp_path / FOLDER / "test_HR")}, tmp_path)

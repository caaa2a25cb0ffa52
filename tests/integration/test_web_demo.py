"""The web demo as a visitor meets it: the real server, in a process of its own, and a real headless Chromium."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import chromium
import numpy as np
import pytest
from chromium import PATIENCE
from PIL import Image
from tiny_checkpoint import load, picture, save, write_checkpoint

chromium.need("gradio", "playwright")

# Runs the demo with every connection that Python opens written down, and with restorations that compute on and on after
# their second step for as long as a file is there: how fast the machine is would else be part of a test.
SERVE = """
import runpy, sys
from pathlib import Path

log, held = open(sys.argv.pop(1), "a", buffering=1), Path(sys.argv.pop(1))
sys.addaudithook(lambda event, args: event == "socket.connect" and print(args[1], file=log))

import dit4sr.demo.run as demo

stay_local = demo.stay_local

def hold_restorations(uploads):
    stay_local(uploads)  # before torch is imported, as ever
    import torch
    from dit4sr.restoration.restorer import Restorer

    restore_batch, ones = Restorer.restore_batch, torch.ones(300, 300)

    def restore(self, *arguments, callback, **options):
        def at_work(step, latent):
            callback(step, latent)
            while step == 1 and held.exists():
                ones @ ones

        return restore_batch(self, *arguments, callback=at_work, **options)

    Restorer.restore_batch = restore

demo.stay_local = hold_restorations
sys.argv[0] = "dit4sr.demo"
runpy.run_module("dit4sr.demo", run_name="__main__")
"""


@dataclass(frozen=True)
class Server:
    address: str
    log: Path
    connections: Path
    held: Path
    checkpoint: Path


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("demo")
    checkpoint = folder / "run" / "checkpoints" / "last.ckpt"
    write_checkpoint(checkpoint)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    log, connections, held = folder / "log.txt", folder / "connections.txt", folder / "held"
    settings = [f"ckpt={checkpoint}", f"port={port}", "device=cpu", "sampler.steps=2", "examples=null"]
    environment = {**os.environ, "TMPDIR": str(folder)}
    with log.open("w") as stream:
        process = subprocess.Popen(
            [sys.executable, "-c", SERVE, connections, held, *settings],
            stdout=stream,
            stderr=subprocess.STDOUT,
            env=environment,
            cwd=folder,
        )
    try:
        deadline = time.monotonic() + PATIENCE / 1000
        while "the page is at" not in log.read_text():
            assert process.poll() is None and time.monotonic() < deadline, log.read_text()
            time.sleep(0.1)
        yield Server(f"http://127.0.0.1:{port}", log, connections, held, checkpoint)
    finally:
        process.terminate()
        process.wait(600)
    assert not list(folder.glob("dit4sr-demo-*")), "photos of visitors stay behind"


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium.launched() as browser:
        yield browser


@pytest.fixture
def page(browser: Any, server: Server) -> Iterator[Any]:
    page = browser.new_page(viewport={"width": 1280, "height": 900}, accept_downloads=True)
    page.set_default_timeout(PATIENCE)
    page.requested = []
    page.on("request", lambda request: page.requested.append(request.url))
    page.goto(server.address)
    page.wait_for_selector("#restore")
    yield page
    page.close()


def upload(page: Any, photo: Path) -> None:
    page.set_input_files("#photo input[type=file]", str(photo))
    page.wait_for_selector("#photo img")


def shown(page: Any) -> list[tuple[int, int, str]]:
    """Width, height and address of the slider's two pictures, once both are there."""
    pictures = "[...document.querySelectorAll('#result img')]"
    page.wait_for_function(f"() => {pictures}.filter(i => i.complete && i.naturalWidth > 0).length == 2")
    return [tuple(p) for p in page.evaluate(f"() => {pictures}.map(i => [i.naturalWidth, i.naturalHeight, i.src])")]


def fetched(address: str, path: Path) -> np.ndarray:
    with urllib.request.urlopen(address, timeout=600) as response:
        path.write_bytes(response.read())
    return load(path)


def test_upload_restore_see_the_result(server: Server, page: Any, tmp_path: Path) -> None:
    save(tmp_path / "a photo.png", picture(20, 28, 0))
    upload(page, tmp_path / "a photo.png")
    page.fill("#prompt textarea", "a red barn")
    page.fill("#seed input", "5")
    page.check("#colour input[value=adain]")
    page.click("#restore")
    (*size, before), (*same, after) = shown(page)
    assert size == same == [112, 80]
    assert "28×20 → 112×80 pixels in" in page.inner_text("#said")
    pixels = fetched(before, tmp_path / "before.png"), fetched(after, tmp_path / "after.png")
    enlarged = np.asarray(Image.fromarray(picture(20, 28, 0)).resize((112, 80), Image.Resampling.BICUBIC))
    assert np.array_equal(pixels[0], enlarged)
    assert np.abs(pixels[0].astype(int) - pixels[1]).mean() > 1

    # What is downloaded is the result as restore.py would have written it, settings and all.
    with page.expect_download() as download:
        page.click("#download")
    result = tmp_path / "downloaded.png"
    download.value.save_as(result)
    assert download.value.suggested_filename == "a photo.png"
    assert np.array_equal(load(result), pixels[1])
    with Image.open(result) as image:
        facts = json.loads(image.text["dit4sr"])
    assert (facts["prompt"], facts["seed"], facts["sampler"]["colour"]) == ("a red barn", 5, "adain")
    (tmp_path / "in").mkdir()
    shutil.copy(tmp_path / "a photo.png", tmp_path / "in" / facts["photo"])
    command = [sys.executable, "-m", "dit4sr", "restore", f"input={tmp_path}/in", f"output={tmp_path}/out"]
    settings = [f"ckpt={server.checkpoint}", "device=cpu", "seed=5", "sampler.steps=2", "sampler.colour=adain"]
    subprocess.run([*command, *settings, "prompt=fixed", "prompt.fixed=a red barn"], check=True, timeout=600)
    again = load(tmp_path / "out" / f"{Path(facts['photo']).stem}.png")
    assert np.abs(again.astype(int) - pixels[1]).max() <= 1

    assert {url.split("/")[2] for url in page.requested if url.startswith("http")} == {server.address.split("/")[2]}


def test_bad_input_is_a_message_on_the_page(server: Server, page: Any, tmp_path: Path) -> None:
    page.click("#restore")
    page.wait_for_selector("text=upload a photo first")
    save(tmp_path / "tiny.png", picture(9, 28, 0))
    upload(page, tmp_path / "tiny.png")
    page.click("#restore")
    page.wait_for_selector("text=28×9 is too small: both sides need 16 pixels")
    page.reload()
    page.wait_for_selector("#restore")
    (tmp_path / "text.png").write_text("no picture")
    page.set_input_files("#photo input[type=file]", str(tmp_path / "text.png"))
    page.wait_for_selector("#photo img", state="attached")
    page.click("#restore")
    page.wait_for_selector("text=not a PNG, JPEG")
    assert "Traceback" not in server.log.read_text()


def test_the_page_answers_while_a_photo_is_restored(server: Server, page: Any, tmp_path: Path) -> None:
    save(tmp_path / "a.png", picture(40, 40, 0))
    upload(page, tmp_path / "a.png")
    page.fill("#steps input[type=number]", "60")
    page.press("#steps input[type=number]", "Tab")
    server.held.touch()
    try:
        page.click("#restore")
        page.wait_for_selector("text=/\\d+\\/60 steps/")  # it is at work, and says how far it is
        with urllib.request.urlopen(f"{server.address}/config", timeout=600) as response:
            assert response.status == 200
        assert "pixels in" not in page.inner_text("#said")  # and still was
    finally:
        server.held.unlink()
    shown(page)


def test_nothing_but_this_machine_is_spoken_to(server: Server) -> None:
    with urllib.request.urlopen(server.address, timeout=600) as response:
        text = response.read().decode()
    assert "DiT4SR" in text
    reached = server.connections.read_text().splitlines() if server.connections.exists() else []
    assert all("127.0.0.1" in line or "::1" in line for line in reached), reached


def test_fields_that_hold_no_sensible_number_are_named() -> None:
    from dit4sr.demo.page import choices_of
    from dit4sr.errors import UserError

    ranges = {"steps": (1.0, 60.0), "upscale": (1.0, 8.0)}
    good = {"steps": 4, "guidance": 1.5, "colour": "none", "upscale": 2.5, "seed": 3}
    choices = choices_of(None, None, **good, ranges=ranges)
    assert (choices.prompt, choices.steps, choices.upscale, choices.seed) == ("", 4, 2.5, 3)
    for name, value in (("steps", None), ("seed", float("nan")), ("steps", 61), ("upscale", 0.5)):
        with pytest.raises(UserError, match=f"^{name} is "):
            choices_of("", "", **{**good, name: value}, ranges=ranges)

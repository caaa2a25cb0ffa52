"""User studies of small pictures, and their server in a process of its own."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from PIL import Image
from PIL.PngImagePlugin import PngInfo
from studies_folders import write_benchmark, write_evaluation

from dit4sr.studies.user_study import main

ROOT = Path(__file__).resolve().parents[1]
TOKEN = "a-token-for-the-tests"
METHODS = {"ours_secret": 2.0, "rival_secret": 9.0, "foe_secret": 16.0}


def write_evaluations(folder: Path, *, truth: bool = True) -> list[str]:
    """Three methods' evaluations of three photos, as evaluations= takes them."""
    write_benchmark(folder / "pairs")
    for method, amount in METHODS.items():
        write_evaluation(folder / method, folder / "pairs", method=method, amount=amount, truth=truth)
        for path in (folder / method / "restored").glob("*.png"):
            tell = PngInfo()
            tell.add_text("dit4sr", f'{{"method": "{method}"}}')
            with Image.open(path) as image:
                image.load()
                image.save(path, pnginfo=tell, exif=Image.Exif())
    return [str(folder / method) for method in METHODS]


def command(action: str, *settings: str) -> list[str]:
    """The study's command line."""
    return [sys.executable, str(ROOT / "experiments" / "user_study" / "run.py"), action, *settings]


def create(folder: Path, *settings: str) -> Path:
    """A study of three methods; its folder."""
    given = ",".join(write_evaluations(folder))
    assert main(["create", f"evaluations=[{given}]", "ours=ours_secret", f"out={folder}/study", *settings]) == 0
    return folder / "study"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def start(study: Path, port: int) -> tuple[subprocess.Popen[str], str]:
    """Serve a study; the process, and the address once it answers."""
    log = (study / "log.txt").open("a")
    process = subprocess.Popen(
        command("serve", f"port={port}", f"out={study}"),
        stdout=subprocess.PIPE,
        stderr=log,
        text=True,
        env={**os.environ, "DIT4SR_STUDY_TOKEN": TOKEN},
    )
    log.close()
    assert process.stdout is not None
    line = process.stdout.readline()
    found = re.search(r"http://[0-9.:]+", line)
    assert found, (line, (study / "log.txt").read_text())
    return process, found[0]


@contextmanager
def serving(study: Path) -> Iterator[str]:
    """The address of a served study."""
    process, address = start(study, free_port())
    try:
        yield address
    finally:
        process.terminate()
        process.wait(600)


class Visitor:
    """A volunteer without a browser: keeps cookies, reads forms, and answers them."""

    def __init__(self, address: str) -> None:
        import httpx

        # Without certificates, whose reading takes longer than the whole visit: the server is this machine.
        self.client = httpx.Client(base_url=address, timeout=600, follow_redirects=True, trust_env=False, verify=False)
        self.page = ""

    def get(self, path: str) -> str:
        response = self.client.get(path)
        assert response.status_code == 200, (path, response.status_code)
        self.page = response.text
        return self.page

    def field(self, name: str) -> str:
        found = re.search(f'name="{name}" value="([^"]*)"', self.page)
        assert found, (name, self.page)
        return found[1]

    def pictures(self) -> dict[str, str]:
        """Slot → path, of the page's pictures."""
        return dict(re.findall(r'<figure class="(\w+)">.*?<img src="([^"]+)"', self.page, re.DOTALL))

    def begin(self) -> None:
        self.get("/")
        response = self.client.post("/begin", data={"csrf": self.field("csrf"), "agree": "yes"})
        assert response.status_code == 200, response.status_code
        self.page = response.text

    def answer(self, realism: str, fidelity: str) -> str:
        """Answer the page; the token of its step comes back once the server has said that it is kept."""
        step = self.field("step")
        data = {"csrf": self.field("csrf"), "step": step, "realism": realism, "fidelity": fidelity}
        response = self.client.post("/pair", data=data)
        assert response.status_code == 200, response.status_code
        self.page = response.text
        return step

    @property
    def finished(self) -> bool:
        return "Thank you" in self.page

"""Nothing from outside is executed: the package's own source, and malicious files against the entry points."""

from __future__ import annotations

import ast
import io
import os
import pickle
import struct
import tarfile
import zlib
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from preparing import config as prepare_config
from preparing import noise
from tiny_checkpoint import TINY, compose_verb, save, write_checkpoint

from dit4sr import export
from dit4sr.data.images import encode_png
from dit4sr.data.prepare import ensure_embedded, prepare
from dit4sr.errors import UserError
from dit4sr.evaluation import run as evaluation
from dit4sr.restoration import run as restoration
from dit4sr.training.run import train

ROOT = Path(__file__).resolve().parents[2]
SOURCES = [path for folder in ("src", "experiments", "benchmarks") for path in sorted((ROOT / folder).rglob("*.py"))]
SOURCES += sorted(ROOT.glob("*.py"))


def dotted(node: ast.expr) -> str:
    if isinstance(node, ast.Attribute):
        return f"{dotted(node.value)}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else "?"


def given(call: ast.Call, name: str, value: object) -> bool:
    return any(k.arg == name and isinstance(k.value, ast.Constant) and k.value.value is value for k in call.keywords)


def forbidden(call: ast.Call) -> str | None:
    """Why a call may run what a file says; None where it cannot."""
    name = dotted(call.func)
    module, _, function = name.rpartition(".")
    if name in ("eval", "exec", "os.system", "os.popen") or module in ("marshal", "shelve", "dill", "cloudpickle"):
        return name
    if module in ("pickle", "joblib", "pd", "pandas") and function in ("load", "loads", "Unpickler", "read_pickle"):
        return name
    if name == "torch.load" and not given(call, "weights_only", True):
        return "torch.load without weights_only=True"
    if name in ("np.load", "numpy.load") and any(k.arg == "allow_pickle" for k in call.keywords):
        return "np.load with allow_pickle" if not given(call, "allow_pickle", False) else None
    if name in ("yaml.load", "yaml.unsafe_load", "yaml.full_load"):
        return name
    if given(call, "shell", True) or given(call, "trust_remote_code", True):
        return f"{name} with shell or trust_remote_code"
    if function in ("extractall", "extract") and "tar" in module.lower():
        return name
    return None


def findings(source: str) -> list[str]:
    calls = (node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call))
    return [f"line {call.lineno}: {reason}" for call in calls if (reason := forbidden(call))]


def test_the_source_executes_nothing_from_outside() -> None:
    assert len(SOURCES) > 50
    found = {str(path.relative_to(ROOT)): lines for path in SOURCES if (lines := findings(path.read_text("utf-8")))}
    assert not found


@pytest.mark.parametrize("line", ["eval(x)", "pickle.load(f)", "torch.load(f)", "torch.load(f, weights_only=False)",
                                  "np.load(f, allow_pickle=True)", "yaml.load(f)", "os.system(x)", "tar.extractall(d)",
                                  "subprocess.run(x, shell=True)", "f(x, trust_remote_code=True)"])  # fmt: skip
def test_the_search_finds_what_it_should(line: str) -> None:
    assert findings(line)


class Trap:
    """Unpickled, it makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str, ...]]:
        return os.system, (f"touch {self.path}",)


@pytest.fixture
def trap(tmp_path: Path) -> Iterator[Path]:
    yield tmp_path / "trapped"
    assert not (tmp_path / "trapped").exists(), "something from outside was executed"


@pytest.fixture(params=["a pickle", "inside a whole checkpoint"])
def evil(request: pytest.FixtureRequest, tmp_path: Path, trap: Path) -> Path:
    path = tmp_path / "run" / "checkpoints" / "last.ckpt"
    write_checkpoint(path)
    if request.param == "a pickle":
        path.write_bytes(pickle.dumps(Trap(trap)))
    else:
        content = torch.load(path, weights_only=True)
        torch.save({**content, "loops": Trap(trap)}, path)
    return path


def test_a_malicious_checkpoint_is_refused_by_every_verb(evil: Path, tmp_path: Path) -> None:
    save(tmp_path / "photos" / "a.png", noise(0))
    training = compose_verb("train", *TINY, "out=unused", f"paths.data={tmp_path}/data", "trainer=cpu", "logger=csv")
    training.resume = str(evil)
    with pytest.raises(UserError, match="cannot be read as a checkpoint"):
        train(training, tmp_path / "other")
    restore = compose_verb("restore", "device=cpu")
    restore.input, restore.output, restore.ckpt = str(tmp_path / "photos"), str(tmp_path / "restored"), str(evil)
    with pytest.raises(UserError, match="cannot be read as a checkpoint"):
        restoration.run(restore, {"input", "output", "ckpt"})
    exported = compose_verb("export", f"out={tmp_path}/exported")
    exported.ckpt = str(evil)
    with pytest.raises(UserError, match="cannot be read as a checkpoint"):
        export.run(exported, {"ckpt"})
    ensure_embedded(tmp_path / "data")
    evaluate = compose_verb("evaluate", f"paths.data={tmp_path}/data", f"out={tmp_path}/evaluated", "device=cpu")
    evaluate.ckpt = str(evil)
    with pytest.raises(UserError, match="cannot be read as a checkpoint"):
        evaluation.run(evaluate, {"ckpt"})


def test_resume_auto_neither_executes_nor_starts_over_silently(evil: Path, tmp_path: Path) -> None:
    config = compose_verb(
        "train", *TINY, "out=unused", f"paths.data={tmp_path}/data", "trainer=cpu", "trainer.max_steps=1", "logger=csv",
        "callbacks=none", "callbacks.progress=false", "backbone.crop=32", "backbone.tile.size=8",
        "backbone.tile.overlap=2", "training.batch_size=2", "data.workers=0",
    )  # fmt: skip
    try:
        train(config, evil.parent.parent)
    except UserError as error:
        assert "cannot be read as a checkpoint" in str(error)


def huge_png(width: int, height: int) -> bytes:
    """A PNG of a few bytes whose header claims any size."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    pixels = chunk(b"IDAT", zlib.compress(bytes(1000)))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + pixels + chunk(b"IEND", b"")


def members(where: Path) -> set[Path]:
    return {path for path in where.rglob("*") if path.is_file()}


def test_names_that_climb_out_of_a_tar_write_nothing_outside(tmp_path: Path) -> None:
    inner = tmp_path / "a" / "b"
    inner.mkdir(parents=True)
    secret = tmp_path / "secret.png"
    secret.write_bytes(encode_png(noise(9)))
    with tarfile.open(inner / "evil.tar", "w") as tar:
        for name in ("../../climbed.png", f"{tmp_path}/absolute.png", "plain.png"):
            data = encode_png(noise(len(name)))
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
        for name, kind in (("linked.png", tarfile.SYMTYPE), ("hard.png", tarfile.LNKTYPE)):
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, str(secret)
            tar.addfile(info)
    before = members(tmp_path)
    try:
        status = prepare(prepare_config(tmp_path, source=str(inner / "evil.tar"), out=str(inner / "out"), patch=16))
        assert status in (0, 1)
    except UserError as error:
        assert "evil.tar" in str(error)
    new = members(tmp_path) - before
    assert all((inner / "out") in path.parents for path in new), new
    assert secret.read_bytes() == encode_png(noise(9))


def test_bombs_and_links_among_photos_cost_only_themselves(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    photos = tmp_path / "photos"
    save(photos / "good.png", noise(1, 16))
    (photos / "wide.png").write_bytes(huge_png(2**31 - 1, 1))
    (photos / "bomb.png").write_bytes(huge_png(60000, 60000))
    (photos / "passwords.png").symlink_to("/etc/passwd")
    (photos / "loop").symlink_to(photos)
    checkpoint = tmp_path / "run" / "checkpoints" / "last.ckpt"
    write_checkpoint(checkpoint)
    config = compose_verb("restore", "sampler.steps=1", "device=cpu", "upscale=1")
    config.input, config.output, config.ckpt = str(photos), str(tmp_path / "restored"), str(checkpoint)
    assert restoration.run(config, {"input", "output", "ckpt", "sampler.steps"}) == 1
    said = "".join(capsys.readouterr())
    assert all(name in said for name in ("wide.png", "bomb.png", "passwords.png")) and "root:" not in said
    assert [path.name for path in sorted((tmp_path / "restored").rglob("*.png"))] == ["good.png"]
    status = prepare(prepare_config(tmp_path, source=str(photos), out=str(tmp_path / "shards"), patch=8))
    assert status == 1
    assert b"root:" not in b"".join(path.read_bytes() for path in members(tmp_path / "shards"))

"""Other people's networks: tiny random ones of real architectures, saved, detected by spandrel, and evaluated."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from tiny_checkpoint import compose_verb, load, write_pairs

from dit4sr.errors import UserError
from dit4sr.evaluation.run import run
from dit4sr.evaluation.tables import read_rows

spandrel = pytest.importorskip("spandrel", reason="method=spandrel is an extra")


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("benchmark")
    write_pairs(folder, ["ant", "bee"], lq=40)
    return folder


def compact(scale: int, seed: int = 0) -> dict[str, torch.Tensor]:
    """Real-ESRGAN's compact architecture: 8 features, one layer, as a state dict."""
    rng = torch.Generator().manual_seed(seed)
    widths = [(8, 3), (8, 8), (3 * scale * scale, 8)]
    state: dict[str, torch.Tensor] = {}
    for number, (out, into) in enumerate(widths):
        state[f"body.{2 * number}.weight"] = 0.1 * torch.randn(out, into, 3, 3, generator=rng)
        state[f"body.{2 * number}.bias"] = 0.01 * torch.randn(out, generator=rng)
        if number < 2:
            state[f"body.{2 * number + 1}.weight"] = torch.full((8,), 0.2)
    return state


def evaluate(pairs: Path, out: Path, path: Path, *overrides: str) -> int:
    folders = ["benchmark=folder", f"benchmark.lq={pairs / 'lq'}", f"benchmark.hq={pairs / 'hq'}", f"out={out}"]
    options = [*folders, "method=spandrel", f"method.path={path}", "device=cpu", *overrides]
    return run(compose_verb("evaluate", *options), {"out"})


def by_hand(path: Path, lq: np.ndarray) -> np.ndarray:
    model = spandrel.ModelLoader().load_from_file(path).eval()
    with torch.no_grad():
        result = model(torch.from_numpy(lq).permute(2, 0, 1)[None].float() / 255)
    return result[0].clamp(0, 1).mul(255).round().permute(1, 2, 0).byte().numpy()


def test_a_network_is_detected_and_evaluated(tmp_path: Path, pairs: Path) -> None:
    path = tmp_path / "tiny_x4.safetensors"
    save_file(compact(4), path)
    assert evaluate(pairs, tmp_path / "out", path) == 0
    assert {row.method for row in read_rows(tmp_path / "out" / "per_image.csv")} == {"bicubic", "tiny_x4"}
    for name in ("ant", "bee"):
        restored = load(tmp_path / "out" / "restored" / f"{name}.png").astype(int)
        assert np.abs(restored - by_hand(path, load(pairs / "lq" / f"{name}.png"))).max() <= 1
    # The same weights as a .pth file of tensors, inside the key that Real-ESRGAN uses.
    torch.save({"params_ema": compact(4)}, tmp_path / "tiny.pth")
    assert evaluate(pairs, tmp_path / "pth", tmp_path / "tiny.pth", "method.label=Tiny") == 0
    again, first = (load(tmp_path / out / "restored" / "ant.png") for out in ("pth", "out"))
    assert np.array_equal(again, first)


def test_tiles_leave_no_seam(tmp_path: Path, pairs: Path) -> None:
    path = tmp_path / "tiny.safetensors"
    save_file(compact(4), path)
    assert evaluate(pairs, tmp_path / "whole", path) == 0
    assert evaluate(pairs, tmp_path / "tiled", path, "method.tile=24", "method.overlap=16") == 0
    whole, tiled = (load(tmp_path / out / "restored" / "ant.png").astype(int) for out in ("whole", "tiled"))
    assert np.abs(whole - tiled).max() <= 2


def test_another_scale_is_refused_or_resized(tmp_path: Path, pairs: Path) -> None:
    path = tmp_path / "twice.safetensors"
    save_file(compact(2), path)
    with pytest.raises(UserError, match=r"enlarges 2 times, but benchmark folder needs 4.*method\.resize=true"):
        evaluate(pairs, tmp_path / "out", path)
    assert evaluate(pairs, tmp_path / "out", path, "method.resize=true") == 0
    assert load(tmp_path / "out" / "restored" / "ant.png").shape == (160, 160, 3)


class Bomb:
    def __init__(self, path: Path) -> None:
        self.path = str(path)

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (Path(self.path),))


def test_what_is_no_network_is_refused_in_one_line(tmp_path: Path, pairs: Path) -> None:
    torch.save({"params": Bomb(tmp_path / "ran")}, tmp_path / "bomb.pth")
    save_file({"a": torch.zeros(3)}, tmp_path / "other.safetensors")
    whole = tmp_path / "whole.safetensors"
    save_file(compact(4), whole)
    (tmp_path / "cut.safetensors").write_bytes(whole.read_bytes()[:500])
    for name in ("bomb.pth", "other.safetensors", "cut.safetensors"):
        with pytest.raises(UserError, match="no checkpoint that spandrel can build"):
            evaluate(pairs, tmp_path / "out", tmp_path / name)
    assert not (tmp_path / "ran").exists()
    for given in (tmp_path / "nothing.pth", tmp_path):
        with pytest.raises(UserError, match="give a checkpoint file"):
            evaluate(pairs, tmp_path / "out", given)
    with pytest.raises(UserError, match=r"method\.tile=wide"):
        evaluate(pairs, tmp_path / "out", whole, "method.tile=wide")
    with pytest.raises(UserError, match=r"overlap=40: it must be smaller"):
        evaluate(pairs, tmp_path / "out", whole, "method.tile=24", "method.overlap=40")

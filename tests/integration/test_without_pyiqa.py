"""pyiqa's licence is not everybody's: everything but evaluation works where it is not installed."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

BLOCKED = """
import importlib.abc, importlib.metadata, sys

class Blocked(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "pyiqa":
            raise ModuleNotFoundError("No module named 'pyiqa'", name=name)

sys.meta_path.insert(0, Blocked())
version = importlib.metadata.version
def other(name):
    if name == "pyiqa":
        raise importlib.metadata.PackageNotFoundError(name)
    return version(name)
importlib.metadata.version = other
"""

EVERYTHING = """
import pkgutil, importlib, dit4sr
for module in pkgutil.walk_packages(dit4sr.__path__, "dit4sr."):
    if module.name.endswith("__main__") or ".demo" in module.name:
        continue
    importlib.import_module(module.name)
from tiny_checkpoint import picture
from dit4sr.evaluation.metrics import psnr_y, ssim_y
print("values", psnr_y(picture(20, 20, 0), picture(20, 20, 1)) > 0, ssim_y(picture(20, 20, 0), picture(20, 20, 1)) < 1)
"""

VERBS = """
import sys
from dit4sr.cli import main
sys.argv = sys.argv[:1] + {arguments}
sys.exit(main({verb!r}))
"""


def python(code: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[1]), "WANDB_MODE": "disabled"}
    return subprocess.run(
        [sys.executable, "-c", BLOCKED + code],
        cwd=cwd,
        env=environment,
        capture_output=True,
        text=True,
        timeout=800,
        check=False,
    )


def test_every_module_is_imported_and_validation_s_metrics_work(tmp_path: Path) -> None:
    done = python(EVERYTHING, tmp_path)
    assert "values True True" in done.stdout, done.stderr[-2000:]


def test_restoring_works_and_evaluating_says_what_to_install(tmp_path: Path) -> None:
    from tiny_checkpoint import picture, save, write_checkpoint, write_pairs

    write_checkpoint(tmp_path / "last.ckpt")
    save(tmp_path / "photo.png", picture(20, 24, 0))
    given = ["input=photo.png", "output=restored", "ckpt=last.ckpt", "sampler.steps=1", "device=cpu"]
    done = python(VERBS.format(arguments=given, verb="restore"), tmp_path)
    assert done.returncode == 0, done.stderr[-2000:]
    assert (tmp_path / "restored" / "photo.png").is_file()

    write_pairs(tmp_path, ["a"])
    given = ["benchmark=folder", "benchmark.lq=lq", "benchmark.hq=hq", "method=bicubic", "out=out"]
    done = python(VERBS.format(arguments=given, verb="evaluate"), tmp_path)
    assert done.returncode == 2
    assert done.stderr.strip().splitlines()[-1].startswith("error: the metrics need pyiqa: pip install")
    assert "Traceback" not in done.stderr

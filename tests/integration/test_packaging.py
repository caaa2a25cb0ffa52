"""What an installation gets: the ranges, the known-good versions, and the configs inside the wheel."""

import re
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def constraints() -> dict[str, str]:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    return dict(line.split("==") for line in lines if not line.startswith("#"))


def test_constraints_are_plain_versions() -> None:
    for name, version in constraints().items():
        assert name == canonicalize_name(name)
        # No local builds (torch's +cu132), paths, hashes or markers: it must install anywhere.
        assert re.fullmatch(r"[0-9][0-9a-z.]*", version), name


def test_known_versions_are_within_the_ranges() -> None:
    known = constraints()
    for line in PROJECT["dependencies"] + PROJECT["optional-dependencies"]["dev"]:
        requirement = Requirement(line)
        assert requirement.specifier, f"{line}: a range, please"
        assert known[canonicalize_name(requirement.name)] in requirement.specifier, line


def test_what_must_be_pinned_to_import_is_a_dependency() -> None:
    """openai-clip, under pyiqa, imports pkg_resources, which setuptools 81 no longer has."""
    (setuptools,) = (r for r in map(Requirement, PROJECT["dependencies"]) if r.name == "setuptools")
    assert "80.9.0" in setuptools.specifier and "81.0.0" not in setuptools.specifier


def test_wheel_contains_the_configs(tmp_path: Path) -> None:
    pytest.importorskip("hatchling")
    command = [
        sys.executable,
        "-m",
        "build",
        "--wheel",
        "--no-isolation",
        "--outdir",
        str(tmp_path),
        str(ROOT),
    ]
    subprocess.run(command, check=True, capture_output=True, timeout=600)
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        (entry_points,) = (n for n in names if n.endswith("entry_points.txt"))
        scripts = archive.read(entry_points).decode()
    configs = {p.relative_to(ROOT).as_posix() for p in (ROOT / "configs").rglob("*.yaml")}
    assert len(configs) > 20
    assert {n.removeprefix("dit4sr/") for n in names if n.startswith("dit4sr/configs/")} == configs
    sources = {p.relative_to(ROOT / "src").as_posix() for p in (ROOT / "src").rglob("*.py")}
    assert {n for n in names if n.endswith(".py")} == sources
    for verb in "train", "evaluate", "restore", "prepare":
        assert f"dit4sr-{verb} = dit4sr.cli:{verb}_main" in scripts

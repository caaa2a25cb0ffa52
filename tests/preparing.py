"""Small configs, photos and shards for the tests of `prepare`."""

from __future__ import annotations

import itertools
import json
import os
import resource
import signal
import sys
from pathlib import Path
from typing import Any

import numpy as np
from omegaconf import OmegaConf

from dit4sr.config import config_dir
from dit4sr.data.prepare import prepare
from dit4sr.data.shard_index import index_shard
from dit4sr.data.shards import find_shards
from dit4sr.errors import UserError


def config(tmp_path: Path, **changes: Any) -> dict[str, Any]:
    """The verb's config with small patches and shards."""
    cfg = OmegaConf.to_container(OmegaConf.load(config_dir() / "prepare.yaml"))
    preset = OmegaConf.to_container(OmegaConf.load(config_dir() / "degradation" / "dit4sr.yaml"))
    small = {"patch": 32, "patches_per_photo": 3, "samples_per_shard": 6}
    return {**cfg, "degradation": preset, "paths": {"data": str(tmp_path / "data")}, **small, **changes}


def noise(k: int, side: int = 60) -> np.ndarray:
    """A photo of noise, (side, side + 4, 3) uint8."""
    return np.random.default_rng(k).integers(0, 256, (side, side + 4, 3), dtype=np.uint8)


def samples(out: Path) -> dict[str, dict[str, bytes]]:
    """Key → members of all samples in the order of the shards."""
    found: dict[str, dict[str, bytes]] = {}
    for shard in find_shards(out):
        with open(shard, "rb") as file:
            for sample in index_shard(shard):
                assert sample.key not in found
                members = {}
                for extension, member in sample.members.items():
                    file.seek(member.offset)
                    members[extension] = file.read(member.size)
                found[sample.key] = members
    return found


def sources_of(out: Path) -> list[str]:
    """The photo of each sample."""
    return [json.loads(members["json"])["source"] for members in samples(out).values()]


def prepare_killed_at(cfg: dict[str, Any], replacement: int, after: bool) -> None:
    """Prepare, and die by SIGKILL just before or after the n-th file takes its final name."""
    replace, calls = os.replace, itertools.count(1)

    def fatal(old: Any, new: Any) -> None:
        last = next(calls) == replacement
        if last and not after:
            os.kill(os.getpid(), signal.SIGKILL)
        replace(old, new)
        if last:
            os.kill(os.getpid(), signal.SIGKILL)

    os.replace = fatal
    sys.exit(prepare(cfg))


def prepare_with_little_room(cfg: dict[str, Any], largest: int, message: Path) -> None:
    """Prepare where no file may grow above a size, which is how a full disk looks; what it says goes to a file."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (largest, resource.RLIM_INFINITY))
    try:
        sys.exit(prepare(cfg))
    except UserError as error:
        message.write_text(str(error))
        sys.exit(2)


def contents(folder: Path) -> dict[str, bytes]:
    """Relative path → bytes of every file of a folder, hidden ones too."""
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}

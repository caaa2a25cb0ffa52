"""Fetching the weights of metrics, for machines that have no network when they evaluate."""

from __future__ import annotations

import socket
from collections.abc import Mapping
from typing import Any

import torch

from dit4sr.evaluation.catalogue import KNOWN, WeightFile
from dit4sr.evaluation.metrics import parse_names
from dit4sr.evaluation.weights import WeightsFolder, import_pyiqa

TIMEOUT = 20
"""Seconds without an answer."""


def fetch(config: Mapping[str, Any]) -> int:
    """Download the weights of the metrics that a config names, those that are not here yet, and say so.

    Returns:
        0 when all are here now, 1 when some could not be fetched (they are listed).
    """
    folder = WeightsFolder.from_config(config)
    files: dict[WeightFile, dict[str, None]] = {}
    for _, base, _ in parse_names(config):
        for file in KNOWN[base].files:
            files.setdefault(file, {})[base] = None
    import_pyiqa()
    timeout = socket.getdefaulttimeout()
    socket.setdefaulttimeout(TIMEOUT)
    failed = 0
    try:
        for file, metrics in files.items():
            wanted = f"{file.name} ({', '.join(metrics)})"
            if (path := folder.find(file)) is not None:
                print(f"{wanted}: here already ({path})")
                continue
            target, url = folder.target(file), url_of(file)
            target.parent.mkdir(parents=True, exist_ok=True)
            try:
                # To a temporary name first, then renamed: an interrupted download leaves nothing behind.
                torch.hub.download_url_to_file(url, str(target), progress=False)
                print(f"{wanted}: fetched into {target.parent}")
            except OSError as error:
                failed += 1
                print(f"{wanted}: could not be fetched ({error}): get {url} and put it into {target.parent}")
    finally:
        socket.setdefaulttimeout(timeout)
    print(f"{len(files) - failed} of {len(files)} files are here")
    return 1 if failed else 0


def url_of(file: WeightFile) -> str:
    """Where a file is published: by pyiqa, torchvision or OpenAI."""
    if file.place == "clip":
        from pyiqa.archs.clip_model import _MODELS

        return next(url for url in _MODELS.values() if url.endswith(f"/{file.name}"))
    if file.place == "checkpoints":
        return f"https://download.pytorch.org/models/{file.name}"
    from pyiqa.archs.arch_util import get_url_from_name

    return str(get_url_from_name(file.name))

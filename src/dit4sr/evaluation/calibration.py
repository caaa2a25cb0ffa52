"""Do the metrics here give the values that they gave elsewhere? Each on one known pair of images.

The pair is made from a photograph inside scikit-image by integer arithmetic, so it is the same on every machine;
its hash is checked first. The stored values were computed with the pyiqa version that stands beside them.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from importlib.resources import files
from typing import Any

import numpy as np

from dit4sr.errors import UserError
from dit4sr.evaluation.fidelity import Image8
from dit4sr.evaluation.metrics import build_metrics, pyiqa_version

TOLERANCE = 1e-4
"""Relative difference from the stored value that counts as the same."""


def known_pair() -> tuple[Image8, Image8]:
    """(restored, ground truth), uint8 (256, 256, 3): three parts means of 4×4 blocks with one part truth, and truth."""
    from skimage.data import astronaut

    truth = np.ascontiguousarray(astronaut()[:256, 96:352])
    blocks = truth.reshape(64, 4, 64, 4, 3).astype(np.int64).sum((1, 3)) // 16
    coarse = blocks.repeat(4, 0).repeat(4, 1)
    return ((3 * coarse + truth) // 4).astype(np.uint8), truth


def pair_hash(pair: tuple[Image8, Image8]) -> str:
    """Of both images' bytes."""
    return hashlib.sha256(b"".join(image.tobytes() for image in pair)).hexdigest()


def stored() -> dict[str, Any]:
    """``pair`` (its hash), ``pyiqa`` (its version) and ``values`` by metric, of calibration.json."""
    return json.loads((files("dit4sr.evaluation") / "calibration.json").read_text(encoding="utf-8"))


def calibrate(config: Mapping[str, Any], device: str) -> int:
    """Measure the known pair by every metric that a config names, and compare with the stored values.

    Returns:
        0 where no value differs (also where none is stored, or a metric is missing), else 1.

    Raises:
        UserError: where the pair is not the known one, or for a wrong config.
    """
    from dit4sr.restoration.loading import resolve_device

    expected, pair = stored(), known_pair()
    if pair_hash(pair) != expected["pair"]:
        raise UserError(
            "the photograph inside scikit-image is another one here: install the version of constraints.txt"
        )
    found = build_metrics(config, str(resolve_device(device)))
    print(f"pyiqa {pyiqa_version()}; stored values are of pyiqa {expected['pyiqa']}; tolerance {TOLERANCE:g} relative")
    differing = 0
    for metric in found.metrics:
        value = metric(*pair)
        key = stored_key(metric.name, metric.protocol, metric.border)
        if (known := expected["values"].get(key)) is None:
            print(f"{metric.name}: {value:.6f}, no stored value")
            continue
        same = abs(value - known) <= TOLERANCE * abs(known)
        differing += not same
        print(f"{metric.name}: {value:.6f}, stored {known:.6f}: {'the same' if same else 'DIFFERENT'}")
    for missing in found.missing:
        print(f"{missing.metric}: missing: {missing.reason}")
    return 1 if differing else 0


def stored_key(name: str, protocol: str, border: int) -> str:
    """Under which a value is stored: the metric, and its protocol and border where it has several."""
    base = name.partition("@")[0]
    return base if protocol == "default" else f"{base}@{protocol}/{border}"

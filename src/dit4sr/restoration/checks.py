"""What can be refused of a config before a network is loaded, or torch imported: values that mean nothing, paths that
lead nowhere. Restoring, evaluating and the demo ask here; what needs the network itself loading.py refuses.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dit4sr.acceleration.settings import AccelerationSettings
from dit4sr.errors import UserError
from dit4sr.prompts.settings import PromptSettings, check_text_device
from dit4sr.restoration.sampler_settings import SamplerSettings
from dit4sr.trained_runs import none_at
from dit4sr.values import number

DEVICES = re.compile(r"auto|cpu|mps|(cuda|xpu)(:\d+)?")


def check_network(config: Mapping[str, Any]) -> None:
    """Refuse values that :func:`dit4sr.restoration.loading.load_restorer` could do nothing with; see check_paths too.

    Args:
        config: configs/evaluate.yaml, restore.yaml or demo.yaml as plain values.

    Raises:
        UserError: naming the setting.
    """
    check_device(config["device"])
    check_text_device(config.get("text_encoder_device"))
    if config.get("injection_scale") is not None:
        try:
            number(config, "injection_scale")
        except UserError as error:
            raise UserError(f"{error}; 1 is as in training") from error
    PromptSettings.from_config(config.get("prompt"))
    SamplerSettings.of_values(config["sampler"])  # a checkpoint may have others to go with them
    if config.get("acceleration") is not None:  # evaluations of before there was any have none
        AccelerationSettings.from_config(config["acceleration"])


def check_device(name: object) -> None:
    """Refuse the name of no device; whether it is here is asked of torch later.

    Raises:
        UserError: saying what there may be.
    """
    if not isinstance(name, str) or not DEVICES.fullmatch(name):
        raise UserError(f"device={name}: choose auto, cpu, or a GPU as cuda or cuda:1")


def check_paths(config: Mapping[str, Any]) -> None:
    """Refuse checkpoints and weights that are not there, or both at once.

    Raises:
        UserError: saying which.
    """
    weights, ckpt, preset = config.get("weights"), config["ckpt"], config.get("weights_preset")
    if weights is not None and ckpt is not None:
        raise UserError("weights=… and ckpt=… both name a network: give one of them")
    if preset and weights is None:
        raise UserError(
            f"weights_preset={preset['name']} says how released weights are used: give their folder too, weights=FOLDER"
        )
    if weights is not None and not Path(str(weights)).expanduser().is_dir():
        raise UserError(f"weights={weights} is no folder: give that of released weights, or what export wrote")
    if ckpt is not None and not Path(str(ckpt)).expanduser().exists():
        raise none_at(ckpt)

"""The config of an earlier evaluation, for ``metrics_only=true``."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from dit4sr.errors import UserError


def earlier_config(config: dict[str, Any], explicit: Collection[str]) -> dict[str, Any]:
    """The config with the benchmark, seeds and samples of the evaluation in ``out``; the benchmark may be another.

    Raises:
        UserError: where ``out`` is not given or holds no restored images, or these have other seeds or samples than
            the command line says.
    """
    out = Path(config["out"])
    if "out" not in explicit or not (out / "restored").is_dir():
        raise UserError(
            f"metrics_only=true measures the images in {out / 'restored'}, and there are none: give out=<folder of an "
            "evaluation>; for a folder of images use method=folder method.path=<folder>"
        )
    try:
        saved: Any = OmegaConf.to_container(OmegaConf.load(out / "config.yaml"), resolve=True)
    except (OSError, OmegaConfBaseException, ValueError):
        saved = {}
    given = {name.split(".")[0] for name in explicit}
    for part in ("seeds", "samples"):
        if part in saved and part in given | ({"seeds"} if "seed" in given else set()) and config[part] != saved[part]:
            raise UserError(
                f"metrics_only=true: the images in {out} were restored with {part}={saved[part]}: leave "
                f"{'seed and seeds' if part == 'seeds' else part} out"
            )
    for part in ("benchmark", "seed", "seeds", "samples", "method", "model"):
        if part in saved and (part not in given or part in ("seed", "seeds", "samples")):
            config[part] = saved[part]
    config["shuffled"] = False
    return config

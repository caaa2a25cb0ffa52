"""What differs between the configs of runs: python -m dit4sr.studies.compare <run> <run> […]

A run is a folder of train.py or evaluate.py, or its config.yaml. Settings that cannot change a result are left out.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dit4sr.errors import UserError


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; exit status 0, or 2 where a run has no config."""
    from dit4sr.cli import complain

    arguments = list(sys.argv[1:] if arguments is None else arguments)
    if any(argument in ("-h", "--help") for argument in arguments):
        print((__doc__ or "").strip())
        return 0
    try:
        if len(arguments) < 2:
            raise UserError("give two runs or more: python -m dit4sr.studies.compare <run> <run>")
        print(comparison(arguments))
    except UserError as error:
        return complain(str(error))
    return 0


def read_config(run: str) -> dict[str, Any]:
    """A run's config, flat.

    Raises:
        UserError: where it has none.
    """
    from omegaconf import OmegaConf
    from yaml import YAMLError

    from dit4sr.studies.sweep_job import flat

    path = Path(run) / "config.yaml" if Path(run).is_dir() else Path(run)
    try:
        config = OmegaConf.to_container(OmegaConf.load(path))
    except (OSError, YAMLError, ValueError) as error:
        reason = "there is no such file" if isinstance(error, OSError) else "it cannot be read as YAML"
        raise UserError(f"{path}: {reason}; give a run's folder, or its config.yaml") from error
    if not isinstance(config, dict):
        raise UserError(f"{path}: it is no config; give a run's folder, or its config.yaml")
    return flat({str(name): value for name, value in config.items()})


def comparison(runs: Sequence[str]) -> str:
    """A table in Markdown: a row for each setting that differs, a column for each run."""
    from dit4sr.studies.report import differing

    configs = {f"{number}:{run}": read_config(run) for number, run in enumerate(runs)}
    found = differing(configs)
    revisions = {str(config.get("revision", "unknown")) for config in configs.values()}
    code = f"code: {', '.join(sorted(revisions))}"
    if not found:
        return f"no setting differs\n{code}"
    cells = [["setting", *(name.partition(":")[2] for name in configs)]]
    cells += [[row["name"], *(row["values"][name] for name in configs)] for row in found]
    widths = [max(len(line[i]) for line in cells) for i in range(len(cells[0]))]
    lines = ["| " + " | ".join(text.ljust(w) for text, w in zip(line, widths, strict=True)) + " |" for line in cells]
    lines.insert(1, "|" + "|".join("-" * (w + 2) for w in widths) + "|")
    return "\n".join([*lines, code])


if __name__ == "__main__":
    sys.exit(main())

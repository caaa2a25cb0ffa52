"""What a run must record to be run again: its resolved config and the code's revision."""

from __future__ import annotations

import subprocess
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from dit4sr.files import write_atomically


def git_revision() -> str:
    """The checkout's commit, with ``-dirty`` where files are changed; ``unknown`` outside a checkout."""
    here = Path(__file__).resolve().parent
    try:
        described = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"],
            cwd=here,
            capture_output=True,
            text=True,
            timeout=10,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return described.stdout.strip()


def write_run_config(out: Path, config: DictConfig) -> None:
    """Write the resolved config, and the revision it ran at, to ``<out>/config.yaml``."""
    out.mkdir(parents=True, exist_ok=True)
    resolved = OmegaConf.create(OmegaConf.to_container(config, resolve=True))
    resolved.revision = git_revision()
    with write_atomically(out / "config.yaml") as temporary:
        temporary.write_text(OmegaConf.to_yaml(resolved))

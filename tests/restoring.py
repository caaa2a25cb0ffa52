"""The verb restore as tests call it."""

from __future__ import annotations

from pathlib import Path

from tiny_checkpoint import compose_verb

from dit4sr.restoration.run import run


def restore(source: Path | str, output: Path, checkpoint: Path, *overrides: str) -> int:
    """Restore photos on the CPU in one step, unless told otherwise; return the verb's exit status."""
    config = compose_verb("restore", "sampler.steps=1", "device=cpu", *overrides)
    config.input, config.output, config.ckpt = str(source), str(output), str(checkpoint)
    return run(config, {"input", "output", "ckpt", "sampler.steps"})

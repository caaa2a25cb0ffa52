"""Where the configuration files are."""

from pathlib import Path


def config_dir() -> Path:
    """Return the folder of the Hydra configs: the checkout's `configs/`, else the copy inside the package."""
    checkout = Path(__file__).resolve().parents[2] / "configs"
    return checkout if checkout.is_dir() else Path(__file__).resolve().parent / "configs"

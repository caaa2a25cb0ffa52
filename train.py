"""Train a model: python train.py [model=…] [backbone=…] [trainer.max_steps=…] [out=…]."""

import sys
from importlib.util import find_spec

if find_spec("dit4sr") is None:
    print("error: dit4sr is not installed here: make setup, then . .venv/bin/activate", file=sys.stderr)
    sys.exit(2)

from dit4sr.cli import train_main

if __name__ == "__main__":
    train_main()

"""Evaluate a checkpoint on a benchmark: python evaluate.py [benchmark=…] [ckpt=…] [model=…]."""

import sys
from importlib.util import find_spec

if find_spec("dit4sr") is None:
    print("error: dit4sr is not installed here: make setup, then . .venv/bin/activate", file=sys.stderr)
    sys.exit(2)

from dit4sr.cli import evaluate_main

if __name__ == "__main__":
    evaluate_main()

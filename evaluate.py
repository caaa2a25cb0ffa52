"""Evaluate a checkpoint on a benchmark: python evaluate.py [benchmark=…] [ckpt=…] [model=…]."""

from dit4sr.cli import evaluate_main

if __name__ == "__main__":
    evaluate_main()

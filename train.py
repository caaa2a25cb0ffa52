"""Train a model: python train.py [model=…] [backbone=…] [trainer.max_steps=…] [out=…]."""

from dit4sr.cli import train_main

if __name__ == "__main__":
    train_main()

"""Cut photos into training shards: python prepare.py [source=<folder>]."""

from dit4sr.cli import prepare_main

if __name__ == "__main__":
    prepare_main()

"""``python -m dit4sr.demo [setting=value …]``; the settings are those of configs/demo.yaml."""

import sys

from dit4sr.cli import main

if __name__ == "__main__":
    sys.exit(main("demo"))

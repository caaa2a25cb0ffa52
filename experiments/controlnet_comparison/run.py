"""The study's one command: python experiments/controlnet_comparison/run.py [setting=value …] (or --help)."""

import sys

from dit4sr.studies.controlnet_comparison import main

if __name__ == "__main__":
    sys.exit(main())

"""The study's one command: python experiments/complexity/run.py [setting=value …]; --help lists the settings."""

import sys

from dit4sr.studies.complexity import main

if __name__ == "__main__":
    sys.exit(main())

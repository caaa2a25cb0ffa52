"""The study's one command: python experiments/architecture/run.py [setting=value …]; --help lists the settings."""

import sys

from dit4sr.studies.architecture import main

if __name__ == "__main__":
    sys.exit(main())

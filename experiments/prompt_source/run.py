"""The study's one command: python experiments/prompt_source/run.py [setting=value …]; --help lists the settings."""

import sys

from dit4sr.studies.prompt_source import main

if __name__ == "__main__":
    sys.exit(main())

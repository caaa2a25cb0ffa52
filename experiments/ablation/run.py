"""The ablation study's one command: python experiments/ablation/run.py [setting=value …]; --help lists the settings."""

import sys

from dit4sr.studies.ablation import main

if __name__ == "__main__":
    sys.exit(main())

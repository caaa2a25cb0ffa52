"""The study's one command: python experiments/user_study/run.py [action] [setting=value …]; --help lists them."""

import sys

from dit4sr.studies.user_study import main

if __name__ == "__main__":
    sys.exit(main())

"""``python -m dit4sr <verb> …`` is ``python <verb>.py …``, also where there is no checkout."""

import sys

from dit4sr.cli import VERBS, complain, main

if __name__ == "__main__":
    if len(sys.argv) < 2 or sys.argv[1] not in VERBS:
        sys.exit(complain(f"usage: python -m dit4sr {'|'.join(VERBS)} [setting=value …]"))
    verb = sys.argv.pop(1)
    sys.exit(main(verb))

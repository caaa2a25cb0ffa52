"""``python held_rank.py train.py …``: training whose second process is held at a moment of its first step.

Environment: HELD_AT is the module's method before which it is held, HELD the file that it makes then, RELEASED the one
that lets it go on.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from typing import Any


def hold() -> None:
    from dit4sr.training.module import DiT4SRModule

    method = getattr(DiT4SRModule, os.environ["HELD_AT"])

    def held(*arguments: Any, **named: Any) -> Any:
        Path(os.environ["HELD"]).touch()
        while not Path(os.environ["RELEASED"]).exists():
            time.sleep(0.02)
        return method(*arguments, **named)

    setattr(DiT4SRModule, os.environ["HELD_AT"], held)


if __name__ == "__main__":
    del sys.argv[1]
    if os.environ.get("LOCAL_RANK") == "1":
        hold()
    from dit4sr.cli import train_main

    train_main()

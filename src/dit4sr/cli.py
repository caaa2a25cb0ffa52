"""The four verbs: each composes a config and calls one function.

Errors that a user can mend are one line and exit status 2; nothing heavy is imported before
the config is composed, so ``--help`` and a wrong name answer at once.
"""

from __future__ import annotations

import difflib
import logging
import os
import sys
import warnings
from collections.abc import Callable
from importlib import import_module

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from dit4sr.config import config_dir
from dit4sr.errors import UserError

Run = Callable[[DictConfig, set[str]], int]

VERBS = {
    "train": "dit4sr.training.run",
    "evaluate": "dit4sr.evaluation.run",
    "restore": "dit4sr.restoration.run",
    "prepare": "dit4sr.data.prepare",
}
"""Verb → module whose ``run(config, explicit)`` does the work and returns the exit status."""


def main(verb: str) -> int:
    """Run a verb on the command line's arguments.

    Returns:
        0 done, 1 partly done (bad inputs are listed), 2 configuration or input error.
    """
    # Hydra then raises its errors in place of printing them over several lines.
    os.environ["HYDRA_FULL_ERROR"] = "1"
    quieten_libraries()
    started: list[bool] = []
    statuses: list[int] = []

    def task(config: DictConfig) -> int:
        started.append(True)
        try:
            run: Run = import_module(VERBS[verb]).run
            status = run(config, explicit_groups())
        except (UserError, OmegaConfBaseException) as error:
            # Not raised through Hydra, which would add a line of its own and end a sweep's other jobs.
            status = complain(" ".join(str(error).split()))
        statuses.append(status)
        return status

    try:
        hydra.main(version_base="1.3", config_path=str(config_dir()), config_name=verb)(task)()
    except MissingConfigException as error:
        return complain(describe_missing(error))
    except OverrideParseException as error:
        return complain(
            f"{error.override}: it cannot be read as setting=value; put quotes around a value with special characters, "
            "as in 'input=\"photos/a (1).jpg\"'"
        )
    except (HydraException, OmegaConfBaseException) as error:
        return complain(" ".join(str(error).split()) + f" (python {verb}.py --help lists what there is)")
    except (ValueError, OSError) as error:
        if started:  # an error of ours, not of the command line: it is shown whole
            raise
        return complain(" ".join(str(error).split()) + f" (python {verb}.py --help lists what there is)")
    except KeyboardInterrupt:
        return complain("interrupted; what was written so far is kept", 130)
    return max(statuses, default=0)


def quieten_libraries() -> None:
    """Leave the terminal to what a person must know."""
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module="lightning")


def complain(message: str, status: int = 2) -> int:
    """Print one line on standard error and return the exit status."""
    print(f"error: {message}", file=sys.stderr)
    return status


def describe_missing(error: MissingConfigException) -> str:
    """One line about an unknown group option, with the options there are."""
    group, _, name = str(error.missing_cfg_file or "").rpartition("/")
    options = list(error.options or [])
    if not group or not options:
        return " ".join(str(error).split())
    close = difflib.get_close_matches(name, options, n=1)
    hint = f"did you mean {close[0]}? " if close else ""
    return f"{group}={name}: there is no such {group}; {hint}choose one of {', '.join(options)}"


def explicit_groups() -> set[str]:
    """Names of the settings and groups that the command line sets, such as ``model`` or ``seed``."""
    return {override.lstrip("+~").split("=", 1)[0].split("@")[0] for override in HydraConfig.get().overrides.task}


def train_main() -> None:
    """Console script ``dit4sr-train``."""
    sys.exit(main("train"))


def evaluate_main() -> None:
    """Console script ``dit4sr-evaluate``."""
    sys.exit(main("evaluate"))


def restore_main() -> None:
    """Console script ``dit4sr-restore``."""
    sys.exit(main("restore"))


def prepare_main() -> None:
    """Console script ``dit4sr-prepare``."""
    sys.exit(main("prepare"))

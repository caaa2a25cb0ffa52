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
from hydra.types import RunMode
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from dit4sr.config import config_dir
from dit4sr.errors import REQUEUE, UserError

Run = Callable[[DictConfig, set[str]], int]

VERBS = {
    "train": "dit4sr.training.run",
    "evaluate": "dit4sr.evaluation.run",
    "restore": "dit4sr.restoration.run",
    "prepare": "dit4sr.data.prepare",
    "preview": "dit4sr.data.preview",
    "export": "dit4sr.export",
    "demo": "dit4sr.demo.run",
}
"""Verb → module whose ``run(config, explicit)`` does the work and returns the exit status."""

JOBS = {"train": "dit4sr.studies.sweep_job"}
"""The same for the jobs of a multirun, where they differ."""


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
    process = os.getpid()

    def task(config: DictConfig) -> int:
        if REQUEUE in statuses:  # told to stop: the sweep's other jobs run when it is started again
            return REQUEUE
        started.append(True)
        try:
            multirun = HydraConfig.get().mode == RunMode.MULTIRUN
            run: Run = import_module(JOBS.get(verb, VERBS[verb]) if multirun else VERBS[verb]).run
            status = run(config, explicit_groups())
        except (UserError, OmegaConfBaseException) as error:
            if os.getpid() != process:  # a launcher's: only an exception reaches the process that waits for it
                raise
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
        return complain(" ".join(str(error).split()) + f" ({command_of(verb)} --help lists what there is)")
    except (ValueError, OSError) as error:
        if started:  # an error of ours, not of the command line: it is shown whole
            raise
        return complain(" ".join(str(error).split()) + f" ({command_of(verb)} --help lists what there is)")
    except KeyboardInterrupt:
        return complain("interrupted; what was written so far is kept", 130)
    return max(statuses, default=0)


def command_of(verb: str) -> str:
    """What a person types to run a verb."""
    own = {
        "demo": "python -m dit4sr.demo",
        "export": "python -m dit4sr export",
        "preview": "python -m dit4sr.data.preview",
    }
    return own.get(verb, f"python {verb}.py")


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


def export_main() -> None:
    """Console script ``dit4sr-export``."""
    sys.exit(main("export"))


def demo_main() -> None:
    """Console script ``dit4sr-demo``."""
    sys.exit(main("demo"))

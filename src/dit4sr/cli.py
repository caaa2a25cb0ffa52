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
from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from hydra.types import RunMode
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from dit4sr.config import config_dir
from dit4sr.errors import REQUEUE, UserError
from dit4sr.files import disk_error, disk_errors, file_of
from dit4sr.launching import JobNotes, note, notes, report

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

OWN_OUT = ("prepare", "demo")
"""Verbs that choose a folder themselves where ``out`` is null."""

LAUNCHERS = ("joblib", "submitit", "ray")
"""Packages whose errors say that a job's process is lost."""


def main(verb: str) -> int:
    """Run a verb on the command line's arguments.

    Returns:
        0 done, 1 partly done (bad inputs are listed), 2 configuration or input error; a training that was told to stop
        75, a person's interrupt 130.
    """
    if verb == "train":  # before the imports, which take seconds
        from dit4sr.training.requeue import leave_on_signals

        leave_on_signals()
    # Hydra then raises its errors in place of printing them over several lines.
    os.environ["HYDRA_FULL_ERROR"] = "1"
    quieten_libraries()
    started: list[bool] = []
    statuses: list[int] = []
    process = os.getpid()
    JobNotes.sweep = None
    try:
        refuse_empty_out(sys.argv[1:])
    except UserError as error:
        return complain(str(error))

    def task(config: DictConfig) -> int:
        started.append(True)
        if os.getpid() != process:
            quieten_libraries()
        multirun = HydraConfig.get().mode == RunMode.MULTIRUN
        message = ""
        try:
            check_folders(verb, config)
            with disk_errors(Path(str(config.get("output") or config.out or "."))):
                if multirun:
                    note()
                    if verb == "evaluate":
                        give_own_folder(config)
                run: Run = import_module(JOBS.get(verb, VERBS[verb]) if multirun else VERBS[verb]).run
                status = run(config, explicit_groups())
        except (UserError, OmegaConfBaseException) as error:
            message = " ".join(str(error).split())
            if os.getpid() != process:  # a launcher's: an exception reaches the process that waits wherever it is
                if multirun:
                    note(2, message)
                raise
            # Not raised through Hydra, which would add a line of its own and end a sweep's other jobs.
            status = complain(message)
        if multirun:
            note(status, message)
            if status == REQUEUE and os.getpid() == process:  # told to stop: Hydra does not begin the other jobs then
                raise SystemExit(REQUEUE)
        statuses.append(status)
        return status

    try:
        hydra.main(version_base="1.3", config_path=str(config_dir()), config_name=verb)(task)()
    except SystemExit as end:  # of --help, or of the callback that ends a sweep and has listed its jobs
        return (end.code if isinstance(end.code, int) else int(end.code is not None)) or report()
    except MissingConfigException as error:
        return complain(describe_missing(error))
    except OverrideParseException as error:
        return complain(
            f"{error.override}: it cannot be read as setting=value; put quotes around a value with special characters, "
            "as in 'input=\"photos/a (1).jpg\"'"
        )
    except (HydraException, OmegaConfBaseException) as error:
        return complain(" ".join(str(error).split()) + f" ({command_of(verb)} --help lists what there is)")
    except UserError as error:  # of a job that a launcher ran; the other jobs have run too
        complain(" ".join(str(error).split()))
        return report() or 2
    except (ValueError, OSError) as error:
        if started:  # an error of ours, not of the command line: it is shown whole
            raise
        if (folder := file_of(error)) and (line := disk_error(error, folder)):  # Hydra makes the run's folder
            return complain(line)
        return complain(" ".join(str(error).split()) + f" ({command_of(verb)} --help lists what there is)")
    except KeyboardInterrupt:
        return complain("interrupted; what was written so far is kept", 130)
    except RuntimeError as error:
        text = " ".join(str(error).split())
        if "srun" in text and not started:  # submitit's, where there is no SLURM
            return complain(f"hydra/launcher: {text} Give the command on a login node, or choose another launcher")
        if type(error).__module__.partition(".")[0] not in LAUNCHERS:
            raise
        if JobNotes.sweep is not None and not notes(JobNotes.sweep):  # refused by the scheduler
            return complain(f"hydra/launcher: no job has begun: {text[:500]}")
        report()
        return complain("a job's process was killed, perhaps for want of memory: give the same command again", 1)
    return report() or max(statuses, default=0)


def refuse_empty_out(arguments: Sequence[str]) -> None:
    """Refuse ``out=`` before Hydra, which would take the working folder for it, makes the folders of a multirun.

    Raises:
        UserError: saying what to give.
    """
    for argument in arguments:
        name, equals, value = argument.partition("=")
        if name.lstrip("+") == "out" and equals and not value.strip(" '\""):
            raise UserError("out= is empty: give a folder, out=<folder>, or leave out= out")


def check_folders(verb: str, config: DictConfig) -> None:
    """Refuse an ``out`` that is no folder's name, wherever it is from, and empty ``paths``.

    Raises:
        UserError: naming the setting.
    """
    if config.out is None and verb not in OWN_OUT:
        raise UserError("out=null names no folder: give one, out=<folder>, or leave out= out")
    paths = config.get("paths") or {}
    for name, value in {"out": config.out, **{f"paths.{key}": value for key, value in paths.items()}}.items():
        if isinstance(value, str) and not value.strip():
            raise UserError(f"{name}= is empty: give a folder, {name}=<folder>, or leave {name}= out")


def give_own_folder(config: DictConfig) -> None:
    """A job's ``out`` becomes its folder in the sweep's, unless the command line gives each job another one."""
    hydra = HydraConfig.get()
    if "out" not in explicit_groups() or str(config.out) == hydra.sweep.dir:
        config.out = hydra.runtime.output_dir


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
    # Diffusers and torchao about each other's versions, where torchao is installed, whether it is used or not.
    logging.getLogger("diffusers.quantizers.torchao.torchao_quantizer").setLevel(logging.ERROR)
    logging.getLogger("torch.utils._pytree").setLevel(logging.ERROR)
    for name in ("hydra", "hydra_plugins"):  # launchers say what they launch once a job has set up logging
        logging.getLogger(name).setLevel(logging.WARNING)
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

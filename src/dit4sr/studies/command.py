"""A study's command line: ``python experiments/<study>/run.py [setting=value …]``.

A study states its settings as a dataclass; what is no setting of its own is, where the study works with
checkpoints, a setting of the verb ``evaluate`` (``ckpt``, ``benchmark``, ``sampler.steps``, ``device``, …).
Errors that a user can mend are one line and exit status 2, and nothing heavy is imported before the settings
are read, as with the verbs.
"""

from __future__ import annotations

import difflib
import os
import sys
import textwrap
from collections.abc import Callable, Sequence
from dataclasses import MISSING, dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dit4sr.errors import UserError

if TYPE_CHECKING:
    from omegaconf import DictConfig


def setting(text: str, default: Any) -> Any:
    """A field of a study's settings: its help text, and its default (lists are copied)."""
    metadata = {"help": text}
    if isinstance(default, list):
        return field(default_factory=lambda: list(default), metadata=metadata)
    return field(default=default, metadata=metadata)


@dataclass(frozen=True, eq=False)
class Request:
    """What the command line asks for.

    Attributes:
        settings: the study's own, an object of its dataclass.
        out: the folder to write to; it exists.
        config: the verb's composed config as plain values; empty where the study has none.
        explicit: names of the verb's settings that the command line sets.
    """

    settings: Any
    out: Path
    config: dict[str, Any]
    explicit: set[str]


Study = Callable[[Request], int]


def outputs_folder() -> Path:
    """Where runs are written: ``DIT4SR_OUTPUTS``, else ``outputs``."""
    return Path(os.environ.get("DIT4SR_OUTPUTS", "outputs"))


def run_study(
    name: str,
    description: str,
    settings_type: type,
    study: Study,
    arguments: Sequence[str] | None = None,
    *,
    verb: str | None = None,
    verb_defaults: Sequence[str] = (),
) -> int:
    """Read the settings, run the study, and say what is wrong in one line.

    Args:
        name: of the study; its results go to outputs/<name> unless ``out=`` is given.
        description: shown by ``--help``.
        settings_type: a dataclass made of :func:`setting` fields, ``out`` among them.
        study: does the work; returns the exit status.
        arguments: the command line's; None takes those of the process.
        verb: whose settings are accepted too.
        verb_defaults: overrides of the verb's config that come before the command line's.

    Returns:
        0 done, 1 partly done, 2 configuration or input error.
    """
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    if any(argument in ("-h", "--help", "help") for argument in arguments):
        print(help_text(name, description, settings_type, verb))
        return 0
    from omegaconf.errors import OmegaConfBaseException

    from dit4sr.cli import complain, quieten_libraries

    quieten_libraries()
    try:
        own, others = split_arguments(arguments, settings_type, verb)
        settings = read_settings(settings_type, own)
        config, explicit = compose_verb(verb, verb_defaults, others) if verb else ({}, set())
        out = Path(settings.out) if settings.out else outputs_folder() / name
        make_folder(out)
        return study(Request(settings, out, config, explicit))
    except (UserError, OmegaConfBaseException) as error:
        return complain(" ".join(str(error).split()))
    except KeyboardInterrupt:
        return complain("interrupted; what was written so far is kept", 130)


def help_text(name: str, description: str, settings_type: type, verb: str | None) -> str:
    """What ``--help`` prints."""
    lines = [description.strip(), "", f"python experiments/{name}/run.py [setting=value …]", ""]
    for f in fields(settings_type):
        default = f.default_factory() if f.default_factory is not MISSING else f.default
        shown = f"outputs/{name}" if f.name == "out" else _shown(default)
        text = textwrap.fill(f"{f.metadata['help']} ({shown})", 92, subsequent_indent=" " * 22)
        lines.append(f"  {f.name:<19} {text}")
    if verb:
        lines += [
            "",
            f"and every setting of {verb}.py, such as benchmark=, device=, seed=, sampler.steps=, paths.data=",
        ]
    return "\n".join(lines)


def _shown(default: Any) -> str:
    if default is None:
        return "null"
    if isinstance(default, bool):
        return str(default).lower()
    return f"[{','.join(map(str, default))}]" if isinstance(default, list) else str(default)


def split_arguments(
    arguments: Sequence[str], settings_type: type, verb: str | None
) -> tuple[dict[str, str], list[str]]:
    """The study's own settings by name, and the verb's overrides.

    Raises:
        UserError: for what is no ``setting=value``, or sets nothing that there is.
    """
    names = [f.name for f in fields(settings_type)]
    own: dict[str, str] = {}
    others: list[str] = []
    for argument in arguments:
        name, equals, value = argument.partition("=")
        if not equals:
            raise UserError(f"{argument}: it cannot be read as setting=value (--help lists the settings)")
        if name in names:
            own[name] = value
        elif verb:
            others.append(argument)
        else:
            close = difflib.get_close_matches(name, names, n=1)
            hint = f"did you mean {close[0]}? " if close else ""
            raise UserError(f"there is no setting {name}: {hint}choose among {', '.join(names)}")
    return own, others


def read_settings(settings_type: type, values: dict[str, str]) -> Any:
    """An object of the dataclass, its values checked against the fields' types.

    A list is written ``[a,b]`` or ``a,b``.

    Raises:
        UserError: for a value of another type.
    """
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException
    from yaml import YAMLError

    config = OmegaConf.structured(settings_type)
    for name, text in values.items():
        try:
            value = OmegaConf.to_container(OmegaConf.from_dotlist([f"{name}={text}"]))[name]  # type: ignore[call-overload, index]
            if OmegaConf.is_list(config[name]) and not isinstance(value, list):
                value = [] if value is None else [part.strip() for part in text.split(",") if part.strip()]
            OmegaConf.update(config, name, value, merge=False)
        except (OmegaConfBaseException, YAMLError, ValueError) as error:
            raise UserError(f"{name}={text}: {str(error).splitlines()[0]}") from error
    return OmegaConf.to_object(config)


def compose_verb(verb: str, defaults: Sequence[str], overrides: Sequence[str]) -> tuple[dict[str, Any], set[str]]:
    """The verb's config as plain values, and the names that the overrides set.

    Raises:
        UserError: for an override that the verb would refuse.
    """
    from hydra import compose, initialize_config_dir
    from hydra.errors import HydraException, MissingConfigException, OverrideParseException
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    from dit4sr.cli import describe_missing
    from dit4sr.config import config_dir

    try:
        with initialize_config_dir(str(config_dir()), version_base="1.3"):
            config: DictConfig = compose(verb, [*defaults, *overrides])
        # Left out: the folder of a run, which names itself by Hydra's own clock, is the study's here.
        plain: dict[str, Any] = OmegaConf.to_container(config, resolve=True)  # type: ignore[assignment]
    except MissingConfigException as error:
        raise UserError(describe_missing(error)) from error
    except OverrideParseException as error:
        raise UserError(f"{error.override}: it cannot be read as setting=value") from error
    except (HydraException, OmegaConfBaseException) as error:
        raise UserError(" ".join(str(error).split()) + f" (python {verb}.py --help lists what there is)") from error
    explicit = {override.lstrip("+~").split("=", 1)[0].split("@")[0] for override in overrides}
    return plain, explicit


def make_folder(folder: Path) -> None:
    """Make the folder of the results.

    Raises:
        UserError: where that is impossible.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"out={folder} cannot be made a folder ({error.strerror}): give another out=") from error


def write_text(path: Path, text: str) -> None:
    """Write a text file, atomically, with a newline at its end."""
    from dit4sr.files import write_atomically

    with write_atomically(path) as temporary:
        temporary.write_text(text.rstrip("\n") + "\n", encoding="utf-8")


def write_csv(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    """Write rows, which have the same keys, as CSV, atomically."""
    import csv

    from dit4sr.files import write_atomically

    with write_atomically(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)

"""A search for hyper-parameters with Optuna, which goes on where it was stopped.

python -m dit4sr.studies.sweep_search [setting=value …]

Optuna itself and its journal file, not hydra-optuna-sweeper: that one needs optuna < 3, and its SQLite storage fails
with SQLAlchemy 2, so a killed search would begin again. A trial is a job like a sweep's, in a process of its own;
stopped in the middle, it goes on from its checkpoint. Needs optuna: pip install 'dit4sr[optuna]'.
"""

from __future__ import annotations

import hashlib
import json
import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dit4sr.errors import REQUEUE, UserError
from dit4sr.studies.command import compose_verb, make_folder, outputs_folder, read_settings, setting, write_csv
from dit4sr.studies.sweep_job import EVALUATED, LOG, run_job
from dit4sr.studies.sweep_stop import heed_signals, told_to_stop


@dataclass
class Settings:
    """Settings of the search."""

    hparams_search: str = setting("name of configs/hparams_search, or a path", "default")
    trials: int | None = setting("finished trials in all, those of earlier calls too; null: as the config says", None)
    out: str | None = setting("folder of the search; the same one goes on", None)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line.

    Returns:
        0 done; 1 where a trial failed (it is listed); 2 for a wrong setting; REQUEUE told to stop, the trial is saved.
    """
    from omegaconf.errors import OmegaConfBaseException

    from dit4sr.cli import complain, quieten_libraries

    arguments = list(sys.argv[1:] if arguments is None else arguments)
    if any(argument in ("-h", "--help") for argument in arguments):
        print((__doc__ or "").strip())
        print("\n  hparams_search  name of configs/hparams_search, or a path (default)")
        print("  trials          finished trials in all, those of earlier calls too (20)")
        print("  out             folder; the same one goes on (outputs/search/<hparams_search>)")
        print("\nand every setting of train.py")
        return 0
    quieten_libraries()
    heed_signals()
    try:
        own = dict(a.split("=", 1) for a in arguments if a.split("=")[0] in ("hparams_search", "trials", "out"))
        others = [a for a in arguments if a.split("=")[0] not in ("hparams_search", "trials", "out")]
        settings: Settings = read_settings(Settings, own)
        search = read_search(settings.hparams_search)
        out = Path(settings.out) if settings.out else outputs_folder() / "search" / Path(settings.hparams_search).stem
        trials = settings.trials if settings.trials is not None else search["trials"]
        if not isinstance(trials, int) or trials < 1:
            raise UserError(f"trials={trials}: give 1 or more")
        make_folder(out)
        return run_search(search, trials, out, others)
    except (UserError, OmegaConfBaseException, ValueError) as error:
        return complain(" ".join(str(error).split()))
    except KeyboardInterrupt:
        return complain("interrupted; the same command goes on", 130)


def read_search(name: str) -> dict[str, Any]:
    """A config of configs/hparams_search.

    Raises:
        UserError: where there is none of the name, or it lacks something.
    """
    from omegaconf import OmegaConf

    from dit4sr.config import config_dir

    folder = config_dir() / "hparams_search"
    path = Path(name) if name.endswith(".yaml") else folder / f"{name}.yaml"
    if not path.is_file():
        known = ", ".join(sorted(file.stem for file in folder.glob("*.yaml")))
        raise UserError(f"hparams_search={name}: there is no such search; choose one of {known}, or give a path")
    search = OmegaConf.to_container(OmegaConf.load(path))
    wanted = ("metric", "direction", "trials", "sampler", "overrides", "space")
    if not isinstance(search, dict) or any(key not in search for key in wanted):
        raise UserError(f"{path}: a search needs {', '.join(wanted)}")
    return {str(key): value for key, value in search.items()}


def suggest(trial: Any, space: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """A value for each setting of the space."""
    values: dict[str, Any] = {}
    for name, s in space.items():
        if "choices" in s:
            values[name] = trial.suggest_categorical(name, s["choices"])
        elif isinstance(s["low"], int) and isinstance(s["high"], int):
            values[name] = trial.suggest_int(name, s["low"], s["high"], log=bool(s.get("log")))
        else:
            values[name] = trial.suggest_float(name, s["low"], s["high"], log=bool(s.get("log")))
    return values


def run_search(search: Mapping[str, Any], trials: int, out: Path, overrides: Sequence[str]) -> int:
    """Run trials until so many are finished, or this process is told to stop; write trials.csv."""
    try:
        import optuna
        from optuna.storages import JournalStorage
        from optuna.storages.journal import JournalFileBackend
    except ImportError as error:
        raise UserError("the search needs optuna: pip install 'dit4sr[optuna]'") from error
    from optuna.trial import TrialState

    compose_verb("train", (), [*search["overrides"], *overrides])  # what is wrong is said before anything runs
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    storage = JournalStorage(JournalFileBackend(str(out / "study.log")))
    study = optuna.create_study(
        study_name="search", storage=storage, direction=search["direction"], load_if_exists=True
    )
    for stopped in study.get_trials(states=[TrialState.RUNNING]):  # by a killed search
        study.enqueue_trial(stopped.params)
        study.tell(stopped.number, state=TrialState.FAIL)
    failed: list[Path] = []
    while (done := len(study.get_trials(states=[TrialState.COMPLETE]))) < trials and len(failed) < trials:
        if told_to_stop():
            return REQUEUE
        # Another seed for each trial, the same in every call: a sampler begins anew when a search goes on.
        seed = len(study.get_trials(deepcopy=False))
        kinds = {"tpe": optuna.samplers.TPESampler, "random": optuna.samplers.RandomSampler}
        if search["sampler"] not in kinds:
            raise UserError(f"sampler {search['sampler']}: choose one of {', '.join(kinds)}")
        study.sampler = kinds[search["sampler"]](seed=seed)
        trial = study.ask()
        values = suggest(trial, search["space"])
        digest = hashlib.blake2b(json.dumps(values, sort_keys=True).encode(), digest_size=4).hexdigest()
        folder = out / f"trial-{digest}"  # by its values, so that a stopped trial finds its checkpoint
        print(f"trial {done + 1} of {trials}: " + ", ".join(f"{n}={v}" for n, v in values.items()), file=sys.stderr)
        own = [f"{name}={value}" for name, value in values.items()]
        config, _ = compose_verb("train", (), [*search["overrides"], *overrides, *own, "evaluate=true"])
        config["out"] = str(folder)
        status = run_job(config, folder, told_to_stop)
        if status == REQUEUE or (status != 0 and told_to_stop()):
            return REQUEUE  # the trial stays a running one, with which the next call begins
        value = result(folder, search["metric"]) if status == 0 else None
        if value is None:
            study.tell(trial, state=TrialState.FAIL)
            failed.append(folder)
        else:
            study.tell(trial, value)
        write_trials(out, study)
    for folder in failed:
        print(f"not finished: {folder.name} (log: {folder / LOG})", file=sys.stderr)
    complete = study.get_trials(states=[TrialState.COMPLETE])
    if complete:
        best = study.best_trial
        print(f"best {search['metric']} {best.value:.4f}: " + " ".join(f"{n}={v}" for n, v in best.params.items()))
        print(out / "trials.csv")
    return 1 if failed else 0


def result(folder: Path, metric: str) -> float | None:
    """The metric's mean of a finished trial; None where it is not defined.

    Raises:
        UserError: where it was not measured.
    """
    summary = json.loads((folder / EVALUATED).read_text(encoding="utf-8"))
    statistics = summary["methods"][summary["method"]["name"]]
    if metric not in statistics:
        raise UserError(f"metric {metric} was not measured: choose one of {', '.join(statistics)}, or set metrics=")
    value = statistics[metric]["mean"]
    return None if value is None or not math.isfinite(value) else float(value)


def write_trials(out: Path, study: Any) -> None:
    """Write trials.csv: number, state, value, and every setting that is searched."""
    rows = [{"trial": t.number, "state": t.state.name, "value": t.value, **t.params} for t in study.get_trials()]
    names = list(dict.fromkeys(name for row in rows for name in row))
    write_csv(out / "trials.csv", [{name: row.get(name, "") for name in names} for row in rows])


if __name__ == "__main__":
    sys.exit(main())

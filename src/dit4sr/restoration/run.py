"""The verb ``restore``: photos in, restored photos out."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig, OmegaConf

from dit4sr.errors import UserError
from dit4sr.files import check_folder
from dit4sr.prompts.captions import Photo, build_captions
from dit4sr.restoration.checks import check_network, check_paths
from dit4sr.trained_runs import check_any_network, checkpoint_file
from dit4sr.values import flag, number, whole_number

if TYPE_CHECKING:
    import numpy as np

    from dit4sr.restoration.batches import Outcome
    from dit4sr.restoration.finding import Job


def run(config: DictConfig, explicit: Collection[str] = ()) -> int:
    """Restore a photo, a folder of photos or a glob to <output>/<relative folder>/<stem>.png.

    Args:
        config: configs/restore.yaml, composed.
        explicit: names of the settings that the command line set.

    Returns:
        0 when done, 1 when photos could not be restored (they are listed).

    Raises:
        UserError: for a config or an input that the user can mend, or where results cannot be written.
    """
    plain: dict[str, Any] = OmegaConf.to_container(config, resolve=True)  # type: ignore[assignment]
    check(plain)
    output = Path(str(plain["output"])).expanduser()
    check_folder(output, "output")
    check_paths(plain)
    captions = build_captions(plain)

    from dit4sr.restoration.finding import find_jobs
    from dit4sr.restoration.results import is_whole, settings_of

    found = find_jobs(str(plain["input"]), output, recursive=plain["recursive"])
    todo = [job for job in found.jobs if plain["overwrite"] or not is_whole(job.result)]
    skipped = sorted(set(found.jobs) - set(todo), key=lambda job: job.name)
    wanted = stated_settings(plain, explicit)
    if not todo:
        report(output, wanted, skipped=skipped, unread=found.unread)
        return 0
    check_any_network(plain, explicit)

    from dit4sr.restoration.batches import Limits, Outcome, Unwritable, restore_all
    from dit4sr.restoration.loading import load_restorer
    from dit4sr.restoration.reading import read_photograph

    # Before the network is loaded, so that a captioning model has the memory to itself.
    photos = [Photo(job.photo, job.name, job.result) for job in todo]
    captions.prepare(photos, lambda path: read_photograph(path).rgb)
    texts = [captions.prompt_for(job.photo, job.name) for job in todo]
    restorer, trained = load_restorer(plain, explicit, texts)
    settings = settings_of(restorer, trained, plain) | {"prompts": captions.facts}
    limits = Limits(plain["batch_size"], plain["max_megapixels"] * 1e6)
    outcome = Outcome()

    def prompts(jobs: Sequence[Job], lqs: Sequence[np.ndarray]) -> list[str]:
        return [captions.prompt_for(job.photo, job.name, lq) for job, lq in zip(jobs, lqs, strict=True)]

    def tell() -> None:
        report(output, settings, skipped, found.unread, outcome, len(todo))

    try:
        restore_all(todo, restorer, prompts, settings, limits, outcome)
    except Unwritable as error:
        tell()
        raise UserError(f"{error}; mend that, or give another output=…; what is done is kept") from error
    except KeyboardInterrupt:
        tell()
        raise
    tell()
    return 1 if outcome.failed else 0


def check(config: Mapping[str, Any]) -> None:
    """Refuse values that mean nothing, before anything heavy is imported.

    Raises:
        UserError: naming the setting.
    """
    if config["input"] in (None, ""):
        raise UserError("say what to restore: input=<photo, folder or glob> output=<folder>")
    if config["output"] in (None, ""):
        raise UserError("output= is empty: give the folder of the results, output=<folder>")
    number(config, "upscale", 1)
    if number(config, "max_megapixels", 0) == 0:
        raise UserError("max_megapixels=0 leaves no result: give more, such as 500")
    whole_number(config, "seed")
    whole_number(config, "batch_size", 1)
    flag(config, "recursive")
    flag(config, "overwrite")
    check_network(config)


def stated_settings(config: Mapping[str, Any], explicit: Collection[str]) -> dict[str, Any]:
    """The part of what travels in a result's metadata that is known without the network."""
    sampler = {name: value for name, value in config["sampler"].items() if f"sampler.{name}" in explicit}
    stated: dict[str, Any] = {"sampler": sampler, "upscale": config["upscale"], "seed": config["seed"]}
    if (network := config.get("weights") or config["ckpt"]) is not None:
        stated["ckpt"] = str(checkpoint_file(Path(network).expanduser()))
    if "model" in explicit:
        stated["model"] = {"name": config["model"]["name"]}
    if config.get("injection_scale") is not None:
        stated["injection_scale"] = float(config["injection_scale"])
    if any(name.split(".")[0] == "acceleration" for name in explicit):
        stated["acceleration"] = config["acceleration"]
    return stated


def report(
    output: Path,
    settings: Mapping[str, Any],
    skipped: Sequence[Job],
    unread: Mapping[str, int],
    outcome: Outcome | None = None,
    asked: int = 0,
) -> None:
    """Say in a few lines what became of the photos.

    Args:
        output: where the results are.
        settings: those of this run, to compare with what the skipped results were made with.
        skipped: photos whose results were there.
        unread: see :class:`dit4sr.restoration.finding.Found`.
        outcome: of the photos to restore; None where there were none.
        asked: number of the photos to restore.
    """
    from dit4sr.restoration.results import differing, made_with

    done, failed = (outcome.done, outcome.failed) if outcome else (0, [])
    parts = [f"{done} of {asked + len(skipped)} photos restored into {output}"]
    if skipped:
        parts.append(f"{len(skipped)} skipped: there already (overwrite=true does them again)")
    if failed:
        parts.append(f"{len(failed)} failed:")
    print("; ".join(parts))
    for failure in failed:
        print(f"  {failure.name}: {failure.reason}")
    others = [different for job in skipped if (different := differing(made_with(job.result) or {}, settings))]
    if others:
        print(f"  {len(others)} of those skipped were made with other settings, such as {', '.join(others[0][:3])}")
    if unread:
        kinds = ", ".join(f"{count} {suffix}" for suffix, count in sorted(unread.items()))
        print(f"  left out, of formats that cannot be read here: {kinds} (save them as PNG, JPEG or TIFF)")

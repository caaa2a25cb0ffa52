"""Evaluating a run's checkpoint right after training, as ``python evaluate.py`` would; looked at before it begins."""

from __future__ import annotations

from pathlib import Path

from omegaconf import DictConfig, OmegaConf


def check_benchmark(config: DictConfig) -> None:
    """Refuse a benchmark that is not there or not whole, rather than after hours of training.

    One that will be made or fetched first is not looked at.

    Raises:
        UserError: as the evaluation would.
    """
    from dit4sr.evaluation.benchmarks import load_benchmark

    benchmark = config.benchmark
    if not benchmark.download and (benchmark.name != "demo" or Path(benchmark.lq).is_dir()):
        load_benchmark(OmegaConf.to_container(benchmark, resolve=True), fixed_prompt="")  # type: ignore[arg-type]


def evaluate_checkpoint(config: DictConfig, checkpoint: Path, out: Path) -> int:
    """Evaluate ``checkpoint`` on the run's benchmark with the run's sampler, into ``out``.

    Args:
        config: the training run's config.
        checkpoint: that it wrote.
        out: folder of the evaluation's files.

    Returns:
        The exit status of the evaluation.
    """
    from hydra import compose, initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra

    from dit4sr.config import config_dir
    from dit4sr.evaluation.run import run

    overrides = [f"model={config.model.name}", f"backbone={config.backbone.name}", f"seed={config.seed}"]
    hydra = GlobalHydra.instance()
    if hydra.is_initialized():  # inside a verb
        evaluation = compose("evaluate", overrides)
    else:
        with initialize_config_dir(str(config_dir()), version_base="1.3"):
            evaluation = compose("evaluate", overrides)
    describes = evaluation.prompt.describes  # of the images that are restored, not of those trained on
    for group in ("model", "backbone", "sampler", "benchmark", "metrics", "prompt", "degradation", "paths"):
        evaluation[group] = config[group]
    evaluation.prompt.describes = describes
    wandb = config.logger.wandb
    if wandb.mode != "disabled":  # a run of its own in the training's group
        names = ("mode", "project", "group", "tags")
        evaluation.logger = {"wandb": {name: wandb[name] for name in names}}
    evaluation.ckpt, evaluation.out = str(checkpoint), str(out)
    return run(evaluation, set())

"""The W&B workspace that compares the models of a sweep, as code.

python -m dit4sr.studies.dashboard [setting=value …]

It has loss curves grouped by model, a bar for each metric of each benchmark, the pictures side by side, and the
complexity table. Logged in, it is saved to the project, with report=true a report too; it is written as JSON in any
case. Needs wandb-workspaces: pip install 'dit4sr[dashboard]'.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from dit4sr.errors import UserError
from dit4sr.studies.command import Request, run_study, setting, write_text


@dataclass
class Settings:
    """Settings of the dashboard."""

    project: str = setting("W&B project", "dit4sr")
    entity: str | None = setting("W&B user or team; null: the one that is logged in", None)
    group: str | None = setting("show the runs of this group alone, such as ablation-nano-120steps", None)
    backbone: str = setting("whose complexity is shown", "nano")
    benchmarks: list[str] = setting("whose metrics are shown", ["demo"])
    metrics: list[str] = setting("names of metrics", ["psnr", "ssim", "gradient_energy"])
    report: bool = setting("save a report too", False)
    out: str | None = setting("folder of workspace.json", None)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    if any(argument in ("-h", "--help") for argument in arguments):
        from dit4sr.studies.command import help_text

        text = help_text("dashboard", __doc__ or "", Settings, None)
        print(text.replace("python experiments/dashboard/run.py [setting=value …]\n\n", ""))
        return 0
    return run_study("dashboard", __doc__ or "", Settings, study, arguments)


def study(request: Request) -> int:
    """Write workspace.json, and save the workspace where W&B can be reached."""
    try:
        import wandb_workspaces  # noqa: F401
    except ImportError as error:
        raise UserError("the dashboard needs wandb-workspaces: pip install 'dit4sr[dashboard]'") from error
    from dit4sr.training.logging import logged_in

    s: Settings = request.settings
    online = logged_in()
    entity = s.entity or (_own_entity() if online else None)
    space = workspace(s, entity or "your-entity")
    path = request.out / "workspace.json"
    write_text(path, space._to_model().model_dump_json(by_alias=True, exclude_none=True, indent=1))
    print(path)
    if not online:
        print("not logged in to W&B (wandb login): the workspace is in the file alone", file=sys.stderr)
        return 0
    try:
        space.save()
        print(space.url)
        if s.report:
            document = report(s, entity or "")
            document.save()
            print(document.url)
    except Exception as error:  # noqa: BLE001 - wandb raises what its transport raises
        reason = (" ".join(str(error).split()) or type(error).__name__)[:200]
        raise UserError(f"W&B did not take the workspace ({reason}); it is in {path}") from error
    return 0


def _own_entity() -> str | None:
    import wandb

    try:
        entity: str | None = wandb.Api(timeout=20).default_entity
    except Exception:  # noqa: BLE001 - no connection, whatever wandb makes of it: the file is written all the same
        return None
    return entity


def panels(s: Settings) -> dict[str, list[Any]]:
    """Section → its panels."""
    import wandb_workspaces.reports.v2 as wr

    by_model: dict[str, Any] = {
        "groupby": wr.Config("model.name"),
        "groupby_aggfunc": "mean",
        "groupby_rangefunc": "stddev",
    }
    lines = {
        "Loss by model": ("train/loss", "val/loss", "val/psnr"),
        "Health": ("gradient/base", "train/learning_rate"),
        "Speed": ("speed/samples_per_second", "speed/data_wait", "speed/memory_gib", "train/mfu"),
    }
    found: dict[str, list[Any]] = {
        name: [wr.LinePlot(title=y, x="step", y=[y], smoothing_factor=0.0, **by_model) for y in quantities]
        for name, quantities in lines.items()
    }
    for benchmark in s.benchmarks:
        found[f"Benchmark {benchmark}"] = [
            wr.BarPlot(title=metric, metrics=[wr.SummaryMetric(f"benchmark/{benchmark}/{metric}")], **by_model)
            for metric in s.metrics
        ]
    pictures = ["val/pictures", *(f"benchmark/{benchmark}/comparison" for benchmark in s.benchmarks)]
    found["Pictures"] = [wr.MediaBrowser(title=key, media_keys=[key], num_columns=6) for key in pictures]
    found["Complexity"] = [wr.MarkdownPanel(markdown=complexity_table(s.backbone))]
    found["Configs"] = [wr.RunComparer(diff_only="split")]
    return found


def workspace(s: Settings, entity: str) -> Any:
    """The workspace, not saved yet."""
    import wandb_workspaces.workspaces as ws

    return ws.Workspace(
        entity=entity,
        project=s.project,
        name="Models compared",
        sections=[ws.Section(name=name, panels=own, is_open=True) for name, own in panels(s).items()],
        settings=ws.WorkspaceSettings(x_axis="step", max_runs=100),
        runset_settings=ws.RunsetSettings(
            filters=[ws.Metric("Group") == s.group] if s.group else [], groupby=[ws.Config("model.name")]
        ),
    )


def report(s: Settings, entity: str) -> Any:
    """The same as a report, not saved yet."""
    import wandb_workspaces.reports.v2 as wr

    runs = wr.Runset(entity=entity, project=s.project, groupby=["config.model.name"])
    blocks: list[Any] = []
    for name, own in panels(s).items():
        blocks += [wr.H2(text=name), wr.PanelGrid(runsets=[runs], panels=own)]
    return wr.Report(project=s.project, entity=entity, title="Models compared", blocks=blocks, width="fluid")


def complexity_table(backbone: str) -> str:
    """Parameters and FLOPs of the six models on a backbone, in Markdown."""
    from dit4sr.studies.complexity import flops, millions, read_configs
    from dit4sr.studies.counting import count, work_of
    from dit4sr.studies.sweep import MODELS

    (config,) = read_configs("backbone", [backbone])
    work = work_of(config, target=int(config["crop"]), steps=1, guidance=1.0)
    lines = ["| model | parameters (M) | trainable (M) | FLOPs of a tile's pass |", "|---|---:|---:|---:|"]
    for model in read_configs("model", list(MODELS)):
        c = count(model, config, work)
        lines.append(f"| {model['name']} | {millions(c.total)} | {millions(c.trainable)} | {flops(c.forward)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())

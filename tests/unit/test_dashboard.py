"""The W&B workspace as code, without a connection; and the search's settings and what it does with a killed trial."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from dit4sr.studies import dashboard, sweep_search


def test_the_workspace_is_written_without_a_connection(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("wandb_workspaces")
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("NETRC", str(tmp_path / "none"))
    assert dashboard.main([f"out={tmp_path}", "benchmarks=[demo,realsr]", "group=ablation"]) == 0
    assert "not logged in" in capsys.readouterr().err
    text = (tmp_path / "workspace.json").read_text()
    sections = json.loads(text)["spec"]["section"]["panelBankConfig"]["sections"]
    names = {section["name"]: section["panels"] for section in sections}
    assert {"Loss by model", "Benchmark demo", "Benchmark realsr", "Pictures", "Complexity", "Configs"} <= set(names)
    for shown in ("train/loss", "benchmark/realsr/psnr", "val/pictures", "sd3_controlnet", "model.value.name"):
        assert shown in text
    assert dashboard.main(["backbone=none", f"out={tmp_path}"]) == 2


def test_a_killed_trial_is_tried_again_and_finished_ones_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    optuna = pytest.importorskip("optuna")
    search = {**sweep_search.read_search("default"), "space": {"training.learning_rate": {"low": 1e-4, "high": 1e-2}}}
    ran: list[float] = []

    def job(config: dict[str, Any], folder: Path, told: Any) -> int:  # stands for a training of minutes
        ran.append(config["training"]["learning_rate"])
        if len(ran) == 2:
            raise KeyboardInterrupt
        psnr = {"mean": 20 + ran[-1], "std": 0.0, "n": 1}
        (folder / "evaluation").mkdir(parents=True)
        summary = {"method": {"name": "dit4sr"}, "methods": {"dit4sr": {"psnr": psnr}}}
        (folder / "evaluation" / "summary.json").write_text(json.dumps(summary))
        return 0

    monkeypatch.setattr(sweep_search, "run_job", job)
    with pytest.raises(KeyboardInterrupt):
        sweep_search.run_search(search, 3, tmp_path, ["out=unused"])
    assert sweep_search.run_search(search, 3, tmp_path, ["out=unused"]) == 0
    assert len(ran) == 4 and ran[2] == ran[1]  # the killed one first, with its own values
    assert sweep_search.run_search(search, 3, tmp_path, ["out=unused"]) == 0 and len(ran) == 4
    rows = (tmp_path / "trials.csv").read_text().splitlines()
    assert rows[0] == "trial,state,value,training.learning_rate" and sum("COMPLETE" in row for row in rows) == 3
    assert optuna.__version__


def test_a_wrong_search_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert sweep_search.main(["hparams_search=none"]) == 2
    assert "choose one of default" in capsys.readouterr().err

"""Speed and utilisation of real (tiny) trainings: the numbers that are logged, shown and kept for watchers."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import lightning
import pytest
import torch
from fake_clock import Clock
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import Logger
from omegaconf import OmegaConf
from tiny_training import config_of, rows_of
from torch import nn
from torch.utils.data import DataLoader

from dit4sr.errors import UserError
from dit4sr.helper_processes import cores
from dit4sr.models.flops import TrainingFlops, step_flops
from dit4sr.training import monitoring, utilisation
from dit4sr.training.callbacks import speed_in_words
from dit4sr.training.monitoring import Monitor
from dit4sr.training.run import train
from dit4sr.training.utilisation import check_peak, measured_peak, peak_flops

CPU = torch.device("cpu")


def test_mfu_is_flops_over_time_over_peak(embedded: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = config_of(
        embedded,
        "trainer.log_every_n_steps=2",
        "callbacks.progress=true",
        "trainer.peak_flops=2e9",
        "training.gradient_checkpointing=true",
    )
    began = time.perf_counter()
    train(config, tmp_path)
    took = time.perf_counter() - began
    plain: Any = OmegaConf.to_container(config, resolve=True)
    counted = step_flops(plain["model"], plain["backbone"], 32 // 4, checkpointing=True)
    rows = rows_of(tmp_path, "speed/samples_per_second")
    assert [row["step"] for row in rows] == ["2", "4"]
    for row in rows:
        samples_per_second = float(row["speed/samples_per_second"])
        assert 2 * 4 / samples_per_second < took  # an interval of two steps of four samples
        assert float(row["train/mfu"]) == pytest.approx(counted.model * samples_per_second / 2e9, rel=1e-9)
        assert float(row["train/hfu"]) == pytest.approx(counted.hardware * samples_per_second / 2e9, rel=1e-9)
        assert 0 <= float(row["speed/data_wait"]) < 1 and 0 <= float(row["speed/callbacks"]) < 1
    facts = json.loads((tmp_path / "heartbeat.json").read_text())
    assert facts["done"] and facts["step"] == 4
    shown = capsys.readouterr().err
    assert f"MFU {100 * float(rows[-1]['train/mfu']):.1f} %" in shown and "data wait" in shown


def test_without_a_peak_there_is_no_mfu(embedded: Path, tmp_path: Path) -> None:
    train(config_of(embedded, "trainer.peak_flops=null", "trainer.max_steps=2"), tmp_path)
    assert not any(row.get("train/mfu") for row in rows_of(tmp_path, "speed/samples_per_second"))


def test_the_peak_of_this_machine_is_measured(embedded: Path, tmp_path: Path) -> None:
    train(config_of(embedded, "trainer.max_steps=2", "trainer.log_every_n_steps=2"), tmp_path)
    (row,) = rows_of(tmp_path, "speed/samples_per_second")
    assert 0 < float(row["train/mfu"]) < 1


@pytest.mark.parametrize("asked", ["fast", -1, 0, float("inf"), float("nan"), True, [1]])
def test_a_peak_that_is_none_is_refused(asked: Any) -> None:
    with pytest.raises(UserError, match=r"trainer\.peak_flops"):
        check_peak(asked)


def test_a_peak_that_is_none_is_refused_before_training(embedded: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"trainer\.peak_flops=fast"):
        train(config_of(embedded, "trainer.peak_flops=fast"), tmp_path)
    assert not (tmp_path / "metrics.csv").exists()


def test_measuring_leaves_the_random_state_alone() -> None:
    state = torch.get_rng_state()
    assert measured_peak.__wrapped__(CPU, torch.float32, 64, 2) > 0
    assert torch.equal(torch.get_rng_state(), state)
    assert peak_flops(CPU, "32-true", "790e12") == 790e12 and peak_flops(CPU, "32-true", None) is None


def test_the_processes_of_a_machine_share_its_peak(monkeypatch: pytest.MonkeyPatch) -> None:
    """One thread each: together no more of them than there are cores."""
    asked: list[int | None] = []
    monkeypatch.setattr(utilisation, "measured_peak", lambda *_, threads: asked.append(threads) or 1e9)
    own, most = torch.get_num_threads(), cores()
    for processes in (1, 2, 10**6):
        assert peak_flops(CPU, "32-true", "auto", processes) == 1e9
    assert asked == [own, max(own, min(2 * own, most)), max(own, most)]


@pytest.mark.parametrize(("nodes", "ranks", "utilisation_of"), [(1, 1, 10.0), (1, 4, 10.0), (3, 12, 30.0)])
def test_the_peak_of_the_cpus_is_one_a_machine(
    nodes: int, ranks: int, utilisation_of: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lightning.Trainer, "world_size", ranks)
    monkeypatch.setattr(lightning.Trainer, "num_nodes", nodes)
    monitor = Monitor(tmp_path, 1, 2, lambda: TrainingFlops(1, 2, 3), lambda device: 10.0)
    for _, metrics in fit(monitor):
        assert metrics["train/mfu"] == pytest.approx(6 * metrics["speed/samples_per_second"] / utilisation_of)


class Recorder(Logger):
    name, version = "recorder", ""  # type: ignore[assignment]

    def __init__(self) -> None:
        super().__init__()
        self.rows: list[tuple[int, dict[str, float]]] = []

    def log_metrics(self, metrics: Any, step: int | None = None) -> None:
        if "speed/samples_per_second" in metrics:
            self.rows.append((step or 0, dict(metrics)))

    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        pass


class Line(lightning.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(3))

    def training_step(self, batch: torch.Tensor, batch_idx: int) -> torch.Tensor:
        return (self.weight * batch).square().mean()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), lr=0.1)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """What the monitor reads the time from."""
    clock = Clock()
    monkeypatch.setattr(monitoring, "time", clock)
    return clock


class Work(Callback):
    """A step computes for half a second."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock

    def on_before_backward(self, *args: Any) -> None:
        self.clock.now += 0.5


class Pause(Callback):
    """Takes a second after each step."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock

    def on_train_batch_end(self, *args: Any) -> None:
        self.clock.now += 1


def fit(monitor: Monitor, *others: Callback, slow: Clock | None = None) -> list[tuple[int, dict[str, float]]]:
    """Four steps; ``slow`` is a clock by which each batch takes two seconds to come."""
    recorder = Recorder()
    trainer = lightning.Trainer(
        max_steps=4, accelerator="cpu", callbacks=[monitor, *others, monitor.last], logger=recorder,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip

    class Loader(DataLoader):  # type: ignore[type-arg]
        def __iter__(self) -> Any:
            for batch in super().__iter__():
                if slow is not None:
                    slow.now += 2
                yield batch

    trainer.fit(Line(), Loader([torch.ones(3)] * 4, batch_size=None))  # type: ignore[arg-type]
    return recorder.rows


def test_what_other_callbacks_take_is_no_part_of_training(tmp_path: Path, clock: Clock) -> None:
    step, metrics = fit(Monitor(tmp_path, 1, 2), Work(clock), Pause(clock))[-1]
    assert step == 4
    # Since the last entry: two pauses of a second, two steps of half a second each.
    assert metrics["speed/callbacks"] == pytest.approx(2 / 3)
    assert metrics["speed/samples_per_second"] == pytest.approx(2)
    assert metrics["speed/data_wait"] == 0  # a pause is no waiting for data


def test_waiting_for_data_is_told_apart(tmp_path: Path, clock: Clock) -> None:
    _, metrics = fit(Monitor(tmp_path, 1, 2), Work(clock), slow=clock)[-1]
    assert metrics["speed/samples_per_second"] == pytest.approx(2 / (2 * 2 + 2 * 0.5))
    assert metrics["speed/data_wait"] == pytest.approx(4 / 5) and metrics["speed/callbacks"] == 0


def test_the_heartbeat_carries_the_newest_values(tmp_path: Path) -> None:
    monitor = Monitor(tmp_path, 1, 2, lambda: TrainingFlops(1, 2, 3), lambda device: 10.0, beat_seconds=0)
    seen: list[dict[str, Any]] = []

    class Watch(Callback):
        def on_train_batch_end(self, *args: Any) -> None:
            seen.append(json.loads((tmp_path / "heartbeat.json").read_text()))

    rows = fit(monitor, Watch())
    assert [facts["step"] for facts in seen] == [1, 2, 3, 4]
    assert "mfu" not in seen[0] and seen[1]["mfu"] == rows[0][1]["train/mfu"]
    assert seen[1]["samples_per_second"] == rows[0][1]["speed/samples_per_second"]


def test_the_progress_bar_s_words() -> None:
    values = {"train/loss": 0.25, "speed/samples_per_second": 12.3, "speed/data_wait": 0.014}
    assert speed_in_words(values) == "loss 0.2500, 12 samples/s, data wait 1 %"
    values |= {"train/mfu": 0.4213, "speed/memory_gib": 50.04}
    assert speed_in_words(values).endswith("MFU 42.1 %, 50.0 GiB")

"""The realised shares of the sources, counted over batches and restarts."""

from types import SimpleNamespace

import pytest
import torch

from dit4sr.training.data_report import DataReport


class Recorder:
    def __init__(self):
        self.rows = []

    def log_metrics(self, metrics, step):
        self.rows.append((step, metrics))


def trainer_at(step, logger, names=("a", "b")):
    return SimpleNamespace(
        datamodule=SimpleNamespace(source_names=names),
        world_size=2,
        strategy=SimpleNamespace(
            root_device=torch.device("cpu"),
            reduce=lambda tensor, reduce_op: 2 * tensor,  # as of two equal ranks
        ),
        loggers=[logger],
        global_step=step,
        is_global_zero=True,
    )


def batch(sources, skipped):
    return {"source": torch.tensor(sources), "skipped": torch.tensor(skipped)}


def test_shares_are_counted_over_all_ranks_and_restarts():
    logger = Recorder()
    report = DataReport(every=2)
    report.on_train_batch_end(trainer_at(1, logger), None, None, batch([0, 0, 0, 1], [0, 1, 0, 0]), 0)
    later = DataReport(every=2)
    later.load_state_dict(report.state_dict())
    later.on_train_batch_end(trainer_at(2, logger), None, None, batch([0, 1, 1, 1], [0, 0, 0, 2]), 1)
    [(step, metrics)] = logger.rows
    assert step == 2 and metrics["data/skipped"] == 6
    assert metrics["data/share/a"] == metrics["data/share/b"] == pytest.approx(0.5)
    assert later.drawn == [8, 8]


def test_one_source_has_no_share():
    logger = Recorder()
    DataReport(1).on_train_batch_end(trainer_at(1, logger, ("a",)), None, None, batch([0, 0], [0, 0]), 0)
    assert logger.rows == [(1, {"data/skipped": 0.0})]

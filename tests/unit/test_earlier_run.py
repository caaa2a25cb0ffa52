"""A new run into the folder of an earlier one: neither loses anything, and each goes on as itself."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from tiny_training import config_of, rows_of

from dit4sr.errors import UserError
from dit4sr.models.checkpoint import read_checkpoint
from dit4sr.training.earlier_run import belongs_to, set_aside
from dit4sr.training.run import train


def steps(out: Path) -> list[int]:
    return [int(row["step"]) for row in rows_of(out, "train/loss")]


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in (folder / "checkpoints").iterdir())


@pytest.fixture(scope="module")
def earlier(embedded: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of four steps with checkpoints of the third and the fourth."""
    out = tmp_path_factory.mktemp("earlier") / "run"
    train(config_of(embedded, "callbacks.checkpoint_every=1", "callbacks.keep_last=2"), out)
    return out


@pytest.fixture
def run(earlier: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(earlier, tmp_path / "run"))


KEEP = ("callbacks.checkpoint_every=1", "callbacks.keep_last=1")


def test_a_run_that_begins_anew_leaves_the_earlier_one_and_goes_on_itself(
    embedded: Path, run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = {path: path.read_bytes() for path in (run / "checkpoints").iterdir()}
    metrics = (run / "metrics.csv").read_bytes()
    train(config_of(embedded, *KEEP, "seed=1", "resume=never", "trainer.max_steps=2"), run)
    lines = [line for line in capsys.readouterr().err.splitlines() if "a new run begins" in line]
    assert len(lines) == 1 and str(run / "earlier-1") in lines[0]
    aside = run / "earlier-1"
    assert {path: (aside / "checkpoints" / path.name).read_bytes() for path in before} == before
    assert (aside / "metrics.csv").read_bytes() == metrics and (aside / "config.yaml").is_file()
    assert names(run) == ["last.ckpt", "step-000000002.ckpt"] and steps(run) == [1, 2]
    train(config_of(embedded, *KEEP, "seed=1", "trainer.max_steps=3"), run)  # would be refused for the earlier's seed
    assert steps(run) == [1, 2, 3]
    assert read_checkpoint(run / "checkpoints" / "last.ckpt")["global_step"] == 3
    assert names(aside) == ["last.ckpt", "step-000000003.ckpt", "step-000000004.ckpt"]
    assert "a new run" not in capsys.readouterr().err
    train(config_of(embedded, *KEEP, "trainer.max_steps=5"), aside)
    assert steps(aside) == [1, 2, 3, 4, 5]


def test_a_run_that_goes_back_to_an_earlier_step_goes_on_from_there(
    embedded: Path, run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    chosen = run / "checkpoints" / "step-000000003.ckpt"
    other = ("training.learning_rate=0.001", "resume_changes=true")
    train(config_of(embedded, *KEEP, *other, f"resume={chosen}", "trainer.max_steps=4"), run)
    assert f"checkpoints of later steps are in {run / 'earlier-1'} now" in capsys.readouterr().err
    assert names(run / "earlier-1") == ["last.ckpt", "step-000000004.ckpt"]
    assert names(run) == ["last.ckpt", "step-000000004.ckpt"] and steps(run) == [1, 2, 3, 4]
    saved = read_checkpoint(run / "checkpoints" / "last.ckpt")
    assert saved["dit4sr"]["training"]["learning_rate"] == 0.001
    train(config_of(embedded, *KEEP, *other, "trainer.max_steps=5"), run)
    assert steps(run) == [1, 2, 3, 4, 5]
    train(config_of(embedded, *KEEP, *other, f"resume={run / 'checkpoints' / 'last.ckpt'}", "trainer.max_steps=6"), run)
    assert not (run / "earlier-2").exists(), "nothing is later than the newest"


def test_a_checkpoint_from_elsewhere_begins_a_new_run_too(embedded: Path, earlier: Path, run: Path) -> None:
    given = earlier / "checkpoints" / "step-000000003.ckpt"
    train(config_of(embedded, *KEEP, f"resume={given}"), run)
    assert names(run / "earlier-1") == ["last.ckpt", "step-000000003.ckpt", "step-000000004.ckpt"]
    assert names(run) == ["last.ckpt", "step-000000004.ckpt"] and steps(run) == [4]


def test_where_every_checkpoint_is_damaged_none_stands_in_the_way(embedded: Path, run: Path) -> None:
    for path in (run / "checkpoints").iterdir():
        path.write_bytes(b"")
    train(config_of(embedded, *KEEP, "trainer.max_steps=1"), run)
    assert names(run) == ["last.ckpt", "step-000000001.ckpt"] and steps(run / "earlier-1") == [1, 2, 3, 4]


def test_a_run_that_is_refused_leaves_the_earlier_one_in_place(embedded: Path, run: Path) -> None:
    with pytest.raises(UserError, match=r"crop=\d+: with this base a crop is a multiple"):
        train(config_of(embedded, "resume=never", "backbone.crop=34"), run)
    assert len(names(run)) == 3 and not (run / "earlier-1").exists()


def test_the_folder_s_own_checkpoints_go_on(embedded: Path, run: Path) -> None:
    given = run / "checkpoints" / "last.ckpt"
    assert belongs_to(given, run) and not belongs_to(run / "earlier-1" / "checkpoints" / "last.ckpt", run)
    train(config_of(embedded, *KEEP, f"resume={given}", "trainer.max_steps=5"), run)
    assert steps(run) == [1, 2, 3, 4, 5] and not (run / "earlier-1").exists()


def test_the_user_s_own_files_stay_and_numbers_go_up(tmp_path: Path) -> None:
    assert set_aside(tmp_path / "none") is None
    (tmp_path / "notes.txt").touch()
    for number in (1, 2):
        (tmp_path / "checkpoints").mkdir()
        (tmp_path / "metrics.csv").touch()
        (tmp_path / "checkpoints" / ".step-000000001.0123456789ab.ckpt").touch()
        assert set_aside(tmp_path) is None, "nothing but what was half written"
        (tmp_path / "checkpoints" / "step-000000001.ckpt").touch()
        assert set_aside(tmp_path) == tmp_path / f"earlier-{number}"
        assert sorted(path.name for path in (tmp_path / f"earlier-{number}").iterdir()) == [
            "checkpoints",
            "metrics.csv",
        ]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["earlier-1", "earlier-2", "notes.txt"]

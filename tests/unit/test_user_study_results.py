"""From votes to rates, by the store itself: known answers give known numbers; and what a new study refuses."""

from __future__ import annotations

import csv
import io
import sqlite3
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
from studies_folders import NAMES
from tiny_checkpoint import load, save
from user_study_folders import write_evaluations

from dit4sr.errors import UserError
from dit4sr.studies.evaluations import read_evaluations
from dit4sr.studies.user_study.command import CONSENT, main
from dit4sr.studies.user_study.importing import create_study, ruined
from dit4sr.studies.user_study.results import ALL, answers_csv, summarise
from dit4sr.studies.user_study.store import Store

FACTS = {"title": "A study", "contact": "", "consent": list(CONSENT), "length": 6, "checks": 1, "allowed_failures": 0}


def make(folder: Path, *, truth: bool = True, **facts: int) -> Store:
    evaluations = read_evaluations(write_evaluations(folder, truth=truth), folder)
    create_study(folder / "study.sqlite", evaluations, "ours_secret", {**FACTS, **facts})
    return Store(folder / "study.sqlite")


def take_part(store: Store, session: str, ours_if: dict[str, bool], *, attentive: bool = True) -> None:
    """Answer everything: ours for realism where ``ours_if`` says so of the competitor, ours always for fidelity."""
    volunteer = store.join(session)
    with closing(sqlite3.connect(store._path)) as db:
        query = """SELECT s.token, s.ours_left, m.label FROM steps s JOIN comparisons c ON c.id = s.comparison
            LEFT JOIN methods m ON m.id = c.competitor WHERE s.volunteer = ?"""
        known = {token: (bool(left), label) for token, left, label in db.execute(query, (volunteer.id,))}
    while (screen := store.screen(volunteer)) is not None:
        left, competitor = known[screen.token]
        realism = attentive if competitor is None else ours_if[competitor]
        sides = ["left" if wants == left else "right" for wants in (realism, True)]
        assert store.answer(volunteer, screen.token, sides[0], sides[1])  # type: ignore[arg-type]


def test_known_answers_give_known_rates(tmp_path: Path) -> None:
    store = make(tmp_path)
    for number in range(4):
        take_part(store, f"one {number}", {"rival_secret": number < 3, "foe_secret": True})
    take_part(store, "careless", {"rival_secret": False, "foe_secret": False}, attentive=False)
    store.volunteers()
    late = store.join("left early")
    assert store.screen(late) is not None
    summary = summarise(store)
    rates = {(r.competitor, r.question): r for r in summary.rates}
    assert (summary.joined, summary.finished, len(summary.excluded), summary.votes) == (6, 5, 1, 24)
    assert rates["rival_secret", "realism"].share == 0.75 and rates["rival_secret", "realism"].votes == 12
    assert rates["foe_secret", "realism"].share == rates["foe_secret", "fidelity"].share == 1
    assert rates[ALL, "realism"].share == 0.875
    low, high = rates["rival_secret", "realism"].resampled
    assert (low, high) != rates["rival_secret", "realism"].wilson and 0 < low < 0.75 < high <= 1
    by_question = {a.question: a for a in summary.agreement}
    # Each photo with the rival has three answers for ours and one against: half of the pairs of answers agree.
    assert by_question["realism"].same == pytest.approx((3 * 3 / 6 + 3) / 6) and by_question["realism"].units == 6
    assert by_question["fidelity"].same == 1
    everybody = summarise(store, allowed_failures=1)
    assert everybody.excluded == () and everybody.votes == 30
    rows = list(csv.DictReader(io.StringIO(answers_csv(store))))
    assert len(rows) == 5 * 7 and sum(row["passed_checks"] == "0" for row in rows) == 7
    store.close()

    assert main(["results", f"out={tmp_path / 'none'}"]) == 2
    (tmp_path / "out").mkdir()
    (tmp_path / "study.sqlite").rename(tmp_path / "out" / "study.sqlite")
    assert main(["results", f"out={tmp_path / 'out'}"]) == 0
    table = (tmp_path / "out" / "table.md").read_text()
    assert "| rival_secret | realism | 12 | 75.0% |" in table
    assert {p.name for p in (tmp_path / "out").iterdir()} >= {"table.csv", "answers.csv", "preference.pdf"}
    figure = load(tmp_path / "out" / "preference.png")
    assert figure.shape[1] == 1440 and figure.std() > 10


def test_every_answer_is_flushed_to_the_disk(tmp_path: Path) -> None:
    store = make(tmp_path)
    connection = store._connection()
    assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    assert connection.execute("PRAGMA synchronous").fetchone() == (2,)  # FULL
    store.close()


def test_volunteers_are_balanced_in_the_store(tmp_path: Path) -> None:
    store = make(tmp_path, length=2)
    for number in range(6):
        store.join(f"someone {number}")
    with closing(sqlite3.connect(store._path)) as db:
        query = """SELECT count(*), sum(ours_left) FROM steps JOIN comparisons c ON c.id = comparison
            WHERE competitor IS NOT NULL GROUP BY comparison"""
        assert db.execute(query).fetchall() == [(2, 1)] * 6
        # Those who left long ago without an answer make room again.
        db.execute("UPDATE volunteers SET seen = seen - 7200")
        db.commit()
        store.join("someone new")
        assert db.execute("SELECT count(*) FROM steps").fetchone() == (21,)
    store.close()


@pytest.mark.parametrize("truth", [True, False])
def test_an_attention_check_is_the_photo_and_its_ruin(tmp_path: Path, truth: bool) -> None:
    from dit4sr.data.images import decode_image

    store = make(tmp_path, truth=truth)
    with closing(sqlite3.connect(store._path)) as db:
        query = """SELECT stem, a.png, b.png FROM comparisons c JOIN photos ON photos.id = photo
            JOIN pictures a ON a.id = ours JOIN pictures b ON b.id = other WHERE competitor IS NULL"""
        rows = db.execute(query).fetchall()
    assert [row[0] for row in rows] == NAMES
    for stem, intact, other in rows:
        where = "pairs/hq" if truth else "ours_secret/restored"
        expected = load(tmp_path / where / f"{stem}.png")
        assert np.array_equal(decode_image(intact), expected)
        assert np.array_equal(decode_image(other), ruined(expected))
        assert np.abs(ruined(expected).astype(int) - expected).mean() > 5
    store.close()


def test_what_makes_no_study_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folders = write_evaluations(tmp_path)
    out = f"out={tmp_path / 'study'}"
    both = f"evaluations={','.join(folders)}"
    refused = [
        (["create", both, out], "give ours=<label>"),
        (["create", f"evaluations={folders[0]}", "ours=ours_secret", out], "nothing to be compared with"),
        (["create", both, "ours=ours_secret", "images=nowhere", out], "none of those"),
        (["create", both, "ours=ours_secret", f"consent={tmp_path}/none.txt", out], "no readable text file"),
        (["create", both, "ours=ours_secret", "length=0", out], "length=0: give 1 or more"),
        (["open", out], "setting=value"),
        (["action=open", out], "choose serve, create or results"),
        (["results", out], "holds no user study"),
        (["serve", out, "port=70000"], "port=70000"),
    ]
    for arguments, said in refused:
        assert main(arguments) == 2
        error = capsys.readouterr().err
        assert said in error and error.count("\n") == 1, error
    assert not (tmp_path / "study" / "study.sqlite").exists()
    small = load(Path(folders[1]) / "restored" / "b.png")[:32]
    save(Path(folders[1]) / "restored" / "b.png", small)
    assert main(["create", both, "ours=ours_secret", out]) == 2
    assert "know them by their sizes" in capsys.readouterr().err
    # Half a study is none.
    assert [p.name for p in (tmp_path / "study").iterdir()] == []


def test_a_study_is_not_overwritten(tmp_path: Path) -> None:
    make(tmp_path).close()
    with pytest.raises(UserError, match="already"):
        create_study(tmp_path / "study.sqlite", [], "ours", FACTS)
    (tmp_path / "no study.sqlite").write_bytes(b"nothing of the kind, though it is long enough to be something")
    with pytest.raises(UserError, match="is no user study"):
        Store(tmp_path / "no study.sqlite")


def test_photos_that_a_method_lacks_are_left_out_and_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = write_evaluations(tmp_path)
    sorted((Path(given[1]) / "restored").glob("*.png"))[0].unlink()
    arguments = [f"evaluations=[{','.join(given)}]", "ours=ours_secret"]
    assert main(["create", *arguments, f"out={tmp_path}/study"]) == 0
    said = capsys.readouterr().out
    assert "photos 2, competitors 2, comparisons 4" in said
    assert "left out, for not every method has restored them: 1" in said
    assert main(["create", *arguments, "images=[c]", f"out={tmp_path}/one"]) == 0
    assert "left out" not in capsys.readouterr().out


def test_one_evaluation_can_be_compared_with_bicubic(tmp_path: Path) -> None:
    evaluations = read_evaluations(write_evaluations(tmp_path)[:1], tmp_path)
    counts = create_study(tmp_path / "study.sqlite", evaluations, "ours_secret", FACTS, bicubic=True)
    assert counts == {"photos": 3, "competitors": 1, "comparisons": 3}


def test_texts_are_no_formulas() -> None:
    from dit4sr.studies.user_study.results import inert

    assert inert("=1+1") == "'=1+1" and inert("dit4sr") == "dit4sr" and inert(-3) == -3

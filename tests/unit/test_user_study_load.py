"""Fifty volunteers at once, and a server that is killed while they answer."""

from __future__ import annotations

import sqlite3
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

pytest.importorskip("fastapi")
httpx = pytest.importorskip("httpx")

from user_study_folders import Visitor, create, free_port, serving, start  # noqa: E402


def test_fifty_volunteers_at_once(tmp_path: Path) -> None:
    study = create(tmp_path, "length=2", "checks=1")
    together = threading.Barrier(50)

    def take_part(number: int) -> list[str]:
        visitor = Visitor(address)
        together.wait(600)
        visitor.begin()
        steps = []
        while not visitor.finished:
            for path in visitor.pictures().values():
                assert visitor.client.get(path).status_code == 200
            steps.append(visitor.answer("left" if number % 2 else "right", "left"))
        return steps

    with serving(study) as address, ThreadPoolExecutor(50) as pool:
        steps = [step for steps in pool.map(take_part, range(50)) for step in steps]
    assert len(set(steps)) == 150
    with sqlite3.connect(study / "study.sqlite") as db:
        kept = db.execute("SELECT token FROM answers JOIN steps ON steps.id = step").fetchall()
        query = "SELECT comparison, competitor, ours_left FROM steps JOIN comparisons ON comparisons.id = comparison"
        shown = db.execute(query).fetchall()
        assert db.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    assert {token for (token,) in kept} == set(steps)
    # Balanced although all came at once: 100 over 6 pairs of pictures, and their sides.
    counts = Counter(comparison for comparison, competitor, _ in shown if competitor)
    assert sorted(counts.values()) == [16, 16, 17, 17, 17, 17]
    left = Counter(comparison for comparison, competitor, ours_left in shown if competitor and ours_left)
    assert all(abs(2 * left[c] - n) <= 1 for c, n in counts.items())
    assert (study / "log.txt").read_text() == ""


def test_no_answer_is_lost_to_a_kill(tmp_path: Path) -> None:
    """SIGKILL amid answers, twice: whatever the server said it kept is there, and all can go on."""
    study, port = create(tmp_path, "length=6", "checks=2"), free_port()
    process, address = start(study, port)
    visitors = [Visitor(address) for _ in range(6)]
    for visitor in visitors:
        visitor.begin()
    kept: list[tuple[str, str, str]] = []

    def answer(visitor: Visitor, number: int, enough: int | None = None) -> None:
        while not visitor.finished:
            sides = "left" if (number + len(kept)) % 2 else "right", "left" if number % 2 else "right"
            try:
                kept.append((visitor.answer(*sides), *sides))
            except httpx.TransportError:
                return
            if enough is not None and len(kept) >= enough:
                process.kill()  # at once, while others answer: a look from outside could come when all have finished

    for enough in (7, 23):
        with ThreadPoolExecutor(len(visitors)) as pool:
            for future in [pool.submit(answer, visitor, i, enough) for i, visitor in enumerate(visitors)]:
                future.result()
        process.wait(600)
        assert enough <= len(kept) < 6 * 8
        process, address = start(study, port)
        with sqlite3.connect(study / "study.sqlite") as db:
            query = "SELECT token, realism, fidelity FROM answers JOIN steps ON steps.id = step"
            assert set(kept) <= set(db.execute(query).fetchall())
            assert db.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        for visitor in visitors:
            visitor.get("/")  # the place is found again
    try:
        for number, visitor in enumerate(visitors):
            answer(visitor, number)
            assert visitor.finished
        with sqlite3.connect(study / "study.sqlite") as db:
            assert db.execute("SELECT count(*) FROM answers").fetchone() == (6 * 8,)
    finally:
        process.terminate()
        process.wait(600)

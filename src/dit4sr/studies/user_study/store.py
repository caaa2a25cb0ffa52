"""The store: one SQLite file with the pictures, the volunteers' steps and their answers.

An answer is on the disk when :meth:`Store.answer` returns (write-ahead log, ``synchronous=FULL``), whatever becomes
of the process.
"""

from __future__ import annotations

import base64
import hashlib
import json
import secrets
import sqlite3
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from random import Random
from typing import Any, Literal

from dit4sr.errors import UserError
from dit4sr.studies.user_study import queries
from dit4sr.studies.user_study.design import Comparison, plan

Side = Literal["left", "right"]

PATIENCE = 60.0
"""Seconds to wait for another process's write."""

ACTIVE = 3600.0
"""Seconds since a volunteer's last answer for which their open steps count as shown."""


@dataclass(frozen=True)
class Volunteer:
    """Someone who takes part; ``code`` is the anonymous one."""

    id: int
    code: str


@dataclass(frozen=True)
class Screen:
    """What a volunteer sees now.

    Attributes:
        token: of the step.
        number, count: of this step, from 1, and of all.
        lq, left, right: tokens of the pictures.
        width, height: of the results, in pixels.
    """

    token: str
    number: int
    count: int
    lq: str
    left: str
    right: str
    width: int
    height: int


@dataclass(frozen=True)
class Vote:
    """An answered step.

    Attributes:
        volunteer: anonymous code.
        position: of the step, from 1.
        competitor: label; None for an attention check.
        ours_left: whether our result (the intact picture of a check) was the left one.
        realism, fidelity: the chosen sides.
        answered: seconds since 1970.
        seconds: since the volunteer's answer before, or since joining.
    """

    volunteer: str
    position: int
    benchmark: str
    photo: str
    competitor: str | None
    ours_left: bool
    realism: Side
    fidelity: Side
    answered: float
    seconds: float

    def prefers_ours(self, question: str) -> bool:
        """Whether ``realism`` or ``fidelity`` was answered for our result."""
        return (getattr(self, question) == "left") == self.ours_left


def create_tables(path: Path) -> sqlite3.Connection:
    """A new study's file with its empty tables; the caller fills, commits and closes it."""
    connection = sqlite3.connect(path)
    path.chmod(0o600)
    connection.executescript(files(__package__).joinpath("schema.sql").read_text(encoding="utf-8"))
    return connection


class Store:
    """A study's file. Threads, and other processes, may use it at the same time.

    Args:
        path: the file, as :mod:`dit4sr.studies.user_study.importing` made it.

    Raises:
        UserError: it is no study's file.
    """

    def __init__(self, path: Path) -> None:
        if not path.is_file():
            raise UserError(f"{path.parent} holds no user study: create one with evaluations=<folder>,<folder>")
        self._path = path
        self._local = threading.local()
        self._all: list[sqlite3.Connection] = []
        # Threads queue here in turn; SQLite's own waiting is by polling, and unfair.
        self._writer = threading.Lock()
        try:
            rows = self._connection().execute("SELECT name, value FROM study").fetchall()
        except sqlite3.Error as error:
            raise UserError(f"{path} is no user study ({error}): give another out=") from error
        self.facts: dict[str, Any] = {name: json.loads(value) for name, value in rows}
        self.key = bytes.fromhex(self.facts.pop("key"))

    def close(self) -> None:
        """Close the connections of all threads."""
        while self._all:
            self._all.pop().close()
        self._local = threading.local()

    def _connection(self) -> sqlite3.Connection:
        connection: sqlite3.Connection | None = getattr(self._local, "connection", None)
        if connection is None:
            connection = sqlite3.connect(self._path, timeout=PATIENCE, isolation_level=None, check_same_thread=False)
            connection.execute("PRAGMA journal_mode = WAL")
            connection.execute("PRAGMA synchronous = FULL")
            connection.execute("PRAGMA foreign_keys = ON")
            self._local.connection = connection
            self._all.append(connection)
        return connection

    @contextmanager
    def _writing(self) -> Iterator[sqlite3.Connection]:
        """A transaction, on the disk at the end of the block."""
        with self._writer:
            connection = self._connection()
            connection.execute("BEGIN IMMEDIATE")
            try:
                yield connection
                connection.execute("COMMIT")
            except BaseException:
                if connection.in_transaction:
                    connection.execute("ROLLBACK")
                raise

    def volunteer(self, session: str) -> Volunteer | None:
        """Whose cookie it is; None for nobody's."""
        row = (
            self._connection()
            .execute("SELECT id, code FROM volunteers WHERE session = ?", (_digest(session),))
            .fetchone()
        )
        return None if row is None else Volunteer(*row)

    def join(self, session: str) -> Volunteer:
        """Take part under a cookie: draw the steps. Whoever takes part already stays as they are."""
        with self._writing() as db:
            if (known := self.volunteer(session)) is not None:
                return known
            now = time.time()
            code = _code(session)
            row = db.execute(
                "INSERT INTO volunteers (code, session, joined, seen) VALUES (?, ?, ?, ?)",
                (code, _digest(session), now, now),
            )
            volunteer = Volunteer(row.lastrowid or 0, code)
            self._draw(db, volunteer, now)
            return volunteer

    def _draw(self, db: sqlite3.Connection, volunteer: Volunteer, now: float) -> None:
        """Write the steps of a new volunteer."""
        pictures = {row[0]: row[1:] for row in db.execute(queries.COMPARISONS)}
        comparisons = [Comparison(id, photo, competitor) for id, (photo, competitor, *_) in pictures.items()]
        shown = {id: (left, right) for id, left, right in db.execute(queries.SHOWN, (now - ACTIVE,))}
        rng = Random(secrets.randbits(128))
        steps = plan(comparisons, shown, self.facts["length"], self.facts["checks"], rng)
        for position, step in enumerate(steps, 1):
            _, _, ours, other, lq = pictures[step.comparison]
            row = db.execute(
                "INSERT INTO steps (volunteer, position, comparison, ours_left, token) VALUES (?, ?, ?, ?, ?)",
                (volunteer.id, position, step.comparison, step.ours_left, secrets.token_urlsafe(16)),
            )
            left, right = (ours, other) if step.ours_left else (other, ours)
            db.executemany(
                "INSERT INTO tokens (token, step, slot, picture) VALUES (?, ?, ?, ?)",
                [
                    (secrets.token_urlsafe(16), row.lastrowid, slot, picture)
                    for slot, picture in (("lq", lq), ("left", left), ("right", right))
                ],
            )

    def screen(self, volunteer: Volunteer) -> Screen | None:
        """The volunteer's first step without an answer; None when all have one."""
        db = self._connection()
        row = db.execute(queries.NEXT, (volunteer.id,)).fetchone()
        if row is None:
            return None
        step, token, number, width, height = row
        (count,) = db.execute("SELECT count(*) FROM steps WHERE volunteer = ?", (volunteer.id,)).fetchone()
        tokens: dict[str, str] = dict(db.execute("SELECT slot, token FROM tokens WHERE step = ?", (step,)).fetchall())
        return Screen(token, number, count, tokens["lq"], tokens["left"], tokens["right"], width, height)

    def answer(self, volunteer: Volunteer, token: str, realism: Side, fidelity: Side) -> bool:
        """Keep the answers to a step; the first ones given stay.

        Returns:
            Whether the step is one of this volunteer's.
        """
        with self._writing() as db:
            row = db.execute("SELECT id FROM steps WHERE token = ? AND volunteer = ?", (token, volunteer.id)).fetchone()
            if row is None:
                return False
            now = time.time()
            db.execute(
                "INSERT INTO answers (step, realism, fidelity, answered) VALUES (?, ?, ?, ?) ON CONFLICT DO NOTHING",
                (row[0], realism, fidelity, now),
            )
            db.execute("UPDATE volunteers SET seen = ? WHERE id = ?", (now, volunteer.id))
            return True

    def withdraw(self, volunteer: Volunteer) -> None:
        """Delete a volunteer and every answer of theirs."""
        with self._writing() as db:
            db.execute("DELETE FROM volunteers WHERE id = ?", (volunteer.id,))

    def picture(self, volunteer: Volunteer, token: str) -> bytes | None:
        """The PNG under a token of this volunteer's; None where it is not theirs."""
        row = self._connection().execute(queries.PICTURE, (token, volunteer.id)).fetchone()
        return None if row is None else row[0]

    def votes(self) -> list[Vote]:
        """All answers, by volunteer and position."""
        votes: list[Vote] = []
        before: tuple[str, float] | None = None
        for code, joined, position, benchmark, photo, competitor, left, realism, fidelity, answered in (
            self._connection().execute(queries.VOTES).fetchall()
        ):
            since = before[1] if before is not None and before[0] == code else joined
            votes.append(
                Vote(
                    code, position, benchmark, photo, competitor, bool(left), realism, fidelity, answered,
                    answered - since,
                )
            )  # fmt: skip
            before = code, answered
        return votes

    def volunteers(self) -> dict[str, tuple[int, int]]:
        """Anonymous code → steps answered, steps in all."""
        rows = self._connection().execute(queries.PROGRESS).fetchall()
        return {code: (answered, count) for code, answered, count in rows}

    def steps_each(self) -> int:
        """How many steps a volunteer gets, attention checks among them."""
        query = "SELECT count(competitor), count(*) - count(competitor) FROM comparisons"
        comparisons, checks = self._connection().execute(query).fetchone()
        return min(self.facts["length"], comparisons) + min(self.facts["checks"], checks)

    def competitors(self) -> list[str]:
        """Labels of the methods that ours is compared with, as imported."""
        rows = self._connection().execute(
            "SELECT label FROM methods WHERE id IN (SELECT competitor FROM comparisons) ORDER BY id"
        )
        return [label for (label,) in rows]


def _digest(session: str) -> bytes:
    return hashlib.sha256(session.encode()).digest()


def _code(session: str) -> str:
    """An anonymous code of 12 characters that says nothing about the cookie."""
    return base64.b32encode(hashlib.sha256(b"code " + session.encode()).digest()).decode()[:12]

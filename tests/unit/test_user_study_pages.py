"""The user study's pages through a real server: what they tell, what they refuse, and what they keep."""

from __future__ import annotations

import csv
import io
import re
import socket
import sqlite3
import zlib
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("fastapi")
httpx = pytest.importorskip("httpx")

from user_study_folders import METHODS, TOKEN, Visitor, create, serving  # noqa: E402

STEPS = 8  # 2 competitors × 3 photos, and 2 attention checks
ADMIN = {"Authorization": f"Bearer {TOKEN}"}
PATIENCE = 60
"""Seconds that an answer may take; httpx gives up after five, which is little on a busy machine."""


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return create(tmp_path_factory.mktemp("study"), "length=6", "checks=2", "contact=someone <x@example.org>")


@pytest.fixture(scope="module")
def address(study: Path) -> Iterator[str]:
    with serving(study) as address:
        yield address


def chunks(png: bytes) -> list[bytes]:
    """Types of a PNG's chunks."""
    assert png[:8] == b"\x89PNG\r\n\x1a\n"
    found, at = [], 8
    while at < len(png):
        size = int.from_bytes(png[at : at + 4], "big")
        assert zlib.crc32(png[at + 4 : at + 8 + size]) == int.from_bytes(png[at + 8 + size : at + 12 + size], "big")
        found.append(png[at + 4 : at + 8])
        at += 12 + size
    return found


def test_nothing_tells_the_methods(address: str) -> None:
    """Neither pages nor headers nor picture files, over a whole way through the study."""
    visitor, said, paths = Visitor(address), "", []
    visitor.client.event_hooks["response"] = [lambda r: heard.append(str(r.headers) + str(r.url))]
    heard: list[str] = []
    visitor.begin()
    while not visitor.finished:
        said += visitor.page
        pictures = visitor.pictures()
        assert set(pictures) == {"lq", "left", "right"}
        for path in pictures.values():
            response = visitor.client.get(path)
            assert response.headers["content-type"] == "image/png" and "etag" not in response.headers
            assert set(chunks(response.content)) == {b"IHDR", b"IDAT", b"IEND"}
            assert b"secret" not in response.content
            paths.append(path)
        visitor.answer("left", "right")
    said += visitor.page + "".join(heard) + visitor.get("/study.js") + visitor.get("/study.css")
    for word in [*METHODS, "secret", "bicubic", "dit4sr", "realsr", "restored", "uvicorn", "attention"]:
        assert word not in said.lower(), word
    # One name is used once: equal names would tell which picture is of the method in every pair.
    assert len(set(paths)) == len(paths) == 3 * STEPS


def test_resumes_where_the_volunteer_stopped(address: str, study: Path) -> None:
    visitor = Visitor(address)
    visitor.begin()
    visitor.answer("left", "left")
    visitor.answer("right", "left")
    step, code = visitor.field("step"), re.search(r"<code>(\w+)</code>", visitor.page)
    assert f"Pair 3 of {STEPS}" in visitor.page and code
    again = Visitor(address)
    again.client.cookies = visitor.client.cookies
    again.get("/")
    assert again.field("step") == step and code[1] in again.page
    with sqlite3.connect(study / "study.sqlite") as db:
        stored = db.execute("SELECT hex(session) FROM volunteers WHERE code = ?", (code[1],)).fetchone()[0]
    cookie = visitor.client.cookies["volunteer"]
    assert cookie.encode().hex().upper() not in stored and cookie not in code[1]


def test_the_first_answer_stays_and_a_second_press_does_no_harm(address: str, study: Path) -> None:
    visitor = Visitor(address)
    visitor.begin()
    data = {"csrf": visitor.field("csrf"), "step": visitor.field("step"), "realism": "left", "fidelity": "left"}
    for realism in ("left", "right"):
        assert visitor.client.post("/pair", data={**data, "realism": realism}).status_code == 200
    with sqlite3.connect(study / "study.sqlite") as db:
        query = "SELECT realism FROM answers JOIN steps ON steps.id = step WHERE token = ?"
        assert db.execute(query, (data["step"],)).fetchall() == [("left",)]


def test_beginning_twice_is_taking_part_once(address: str) -> None:
    visitor = Visitor(address)
    visitor.get("/")
    data = {"csrf": visitor.field("csrf"), "agree": "yes"}
    steps = []
    for _ in range(2):
        visitor.page = visitor.client.post("/begin", data=data).text
        steps.append(visitor.field("step"))
    assert steps[0] == steps[1]


def test_forms_without_their_token_or_with_another_volunteers_are_refused(address: str, study: Path) -> None:
    one, two = Visitor(address), Visitor(address)
    one.begin()
    two.begin()
    good = {"csrf": one.field("csrf"), "step": one.field("step"), "realism": "left", "fidelity": "left"}
    bad = [
        (403, {"csrf": two.field("csrf")}),
        (403, {"csrf": "0" * 64}),
        (403, {"csrf": "ÿ\ud83d".encode("utf-8", "surrogatepass").decode("utf-8", "replace")}),
        (403, {"step": two.field("step")}),
        (403, {"step": "../../study.sqlite"}),
        (400, {"realism": "both"}),
        (400, {"fidelity": ""}),
        (400, {"step": "x" * 500}),
    ]
    for status, change in bad:
        assert one.client.post("/pair", data={**good, **change}).status_code == status, change
    for name in good:
        assert one.client.post("/pair", data={k: v for k, v in good.items() if k != name}).status_code == 400
    assert httpx.post(f"{address}/pair", data=good, timeout=PATIENCE).status_code == 403  # without the cookie
    assert one.client.post("/begin", data={"csrf": good["csrf"]}).status_code == 400  # without consent
    assert one.client.post("/withdraw", data={"csrf": two.field("csrf")}).status_code == 403
    with sqlite3.connect(study / "study.sqlite") as db:
        query = "SELECT count(*) FROM answers JOIN steps ON steps.id = step WHERE token IN (?, ?)"
        assert db.execute(query, (good["step"], two.field("step"))).fetchone() == (0,)


def test_no_path_leads_to_a_file_or_to_another_volunteers_pictures(address: str) -> None:
    one, two = Visitor(address), Visitor(address)
    one.begin()
    two.begin()
    foreign = two.pictures()["left"]
    assert two.client.get(foreign).status_code == 200
    paths = [foreign, "/image/", "/image/1", "/image/%2e%2e%2fstudy.sqlite", "/image/..%2f..%2f/etc/passwd"]
    paths += ["/study.sqlite", "/pages/base.html", "/image/%00", "/image/' OR 1=1 --", "/docs", "/openapi.json"]
    for path in paths:
        assert one.client.get(path).status_code == 404, path
    assert httpx.get(address + foreign, timeout=PATIENCE).status_code == 404


def test_every_answer_carries_the_security_headers(address: str) -> None:
    visitor = Visitor(address)
    visitor.begin()
    for path in ("/", "/pair", visitor.pictures()["lq"], "/study.js", "/nothing", "/admin"):
        headers = visitor.client.get(path).headers
        policy = headers["content-security-policy"]
        assert "default-src 'none'" in policy and "frame-ancestors 'none'" in policy and "unsafe" not in policy
        assert headers["x-content-type-options"] == "nosniff" and headers["x-frame-options"] == "DENY"
        assert "server" not in headers
    cookie = httpx.get(address, timeout=PATIENCE).headers["set-cookie"].lower()
    assert "httponly" in cookie and "samesite=lax" in cookie
    for page in (visitor.get("/"), visitor.get("/admin")):
        assert not re.search(r"<script(?![^>]*\bsrc=)|<style|\bon\w+=|\bstyle=|https?://", page)


def test_long_and_unmeasured_bodies_are_refused_unread(address: str) -> None:
    big = httpx.post(f"{address}/pair", data={"step": "x" * 20_000}, timeout=PATIENCE)
    assert big.status_code == 413 and "too long" in big.text
    assert httpx.post(f"{address}/pair", content=iter([b"step=1"]), timeout=PATIENCE).status_code == 411
    # Both headers: the chunks would be read, whatever length the other one promises.
    assert raw_status(address, b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n", b"4e20\r\n") == 411
    assert httpx.put(f"{address}/pair", content=b"x", timeout=PATIENCE).status_code == 405


def raw_status(address: str, headers: bytes, body: bytes) -> int:
    """The status of a POST that no client library would send."""
    host, port = address.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=PATIENCE) as connection:
        form = b"Content-Type: application/x-www-form-urlencoded\r\n"
        connection.sendall(b"POST /pair HTTP/1.1\r\nHost: x\r\n" + form + headers + b"\r\n" + body)
        return int(connection.recv(4096).split(b" ", 2)[1])


def test_results_need_the_token(address: str) -> None:
    visitor = Visitor(address)
    assert "Token" in visitor.get("/results")
    for path in ("/results/answers.csv", "/results/preference.png"):
        assert visitor.client.get(path).status_code == 401
        guessed = httpx.get(address + path, headers={"Authorization": "Bearer é".encode()}, timeout=PATIENCE)
        assert guessed.status_code == 401
    for cookie in ("", "9999999999.", "9999999999." + "0" * 64, "x.y", "²." + "0" * 64):
        raw = {"Cookie": f"admin={cookie}".encode("latin-1")}
        assert httpx.get(f"{address}/results", headers=raw, timeout=PATIENCE).status_code == 303
    wrong = visitor.client.post("/admin", data={"csrf": visitor.field("csrf"), "token": "guessed-token-guess"})
    assert wrong.status_code == 401 and "not the token" in wrong.text
    right = visitor.client.post("/admin", data={"csrf": visitor.field("csrf"), "token": TOKEN})
    assert right.status_code == 200 and "Results" in right.text and TOKEN not in str(right.url)
    assert visitor.client.get("/results/preference.png").content[:4] == b"\x89PNG"


def test_results_are_those_answers(address: str) -> None:
    """The export says what was answered, and two careless volunteers are left out."""
    one, two = Visitor(address), Visitor(address)
    with httpx.Client(base_url=address, headers=ADMIN, timeout=PATIENCE) as admin:
        before = list(csv.DictReader(io.StringIO(admin.get("/results/answers.csv").text)))
        for visitor in (one, two):
            visitor.begin()
        while not one.finished:
            one.answer("left", "right")
        while not two.finished:
            two.answer("right", "left")
        rows = list(csv.DictReader(io.StringIO(admin.get("/results/answers.csv").text)))
        page = admin.get("/results").text
    assert len(rows) == len(before) + 2 * STEPS
    new = [row for row in rows if row["volunteer"] not in {r["volunteer"] for r in before}]
    for row in new:
        ours = "intact" if row["attention_check"] == "1" else "ours_secret"
        for question in ("realism", "fidelity"):
            chosen_ours = row[f"{question}_side"] == row["ours_side"]
            assert (row[f"{question}_preferred"] == ours) == chosen_ours
        assert float(row["seconds"]) >= 0
    # Left for one question and right for the other is wrong in one of them, in every check.
    assert {row["passed_checks"] for row in new} == {"0"}
    assert "left out for failed attention checks" in page


def test_withdrawing_deletes_the_answers(address: str, study: Path) -> None:
    visitor = Visitor(address)
    visitor.begin()
    visitor.answer("left", "left")
    code = re.search(r"<code>(\w+)</code>", visitor.page)
    assert code
    with sqlite3.connect(study / "study.sqlite") as db:
        count = "SELECT count(*) FROM answers"
        before = db.execute(count).fetchone()[0]
        visitor.get("/withdraw")
        assert "deleted" in visitor.client.post("/withdraw", data={"csrf": visitor.field("csrf")}).text
        assert db.execute(count).fetchone()[0] == before - 1
        assert db.execute("SELECT count(*) FROM volunteers WHERE code = ?", (code[1],)).fetchone() == (0,)
        tokens = "SELECT count(*) FROM tokens WHERE step NOT IN (SELECT id FROM steps)"
        assert db.execute(tokens).fetchone() == (0,)
    assert "Begin" in visitor.get("/")

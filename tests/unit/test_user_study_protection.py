"""Rate limits, form tokens and what is read of a request."""

import pytest

from dit4sr.studies.user_study.protection import (
    ADMIN_SECONDS,
    Limits,
    RateLimit,
    Seals,
    body_refused,
    client_of,
    new_session,
    valid_session,
)


def test_a_bucket_empties_and_fills_again() -> None:
    now = [0.0]
    limit = RateLimit(rate=2, burst=3, clock=lambda: now[0])
    assert [limit.admits("a") for _ in range(4)] == [True, True, True, False]
    assert limit.admits("b")
    now[0] = 0.5
    assert [limit.admits("a") for _ in range(2)] == [True, False]
    now[0] = 1000
    assert [limit.admits("a") for _ in range(4)] == [True, True, True, False]


def test_addresses_do_not_fill_the_memory() -> None:
    limit = RateLimit(rate=1, burst=1, clients=10, clock=lambda: 0.0)
    for number in range(100):
        assert limit.admits(str(number))
    assert len(limit._buckets) == 10 and not limit.admits("99") and limit.admits("0")


def test_a_network_of_ipv6_is_one_client() -> None:
    assert client_of("2001:db8::1") == client_of("2001:db8::ffff:2") != client_of("2001:db8:0:1::1")
    assert client_of("::ffff:10.0.0.1") == client_of("10.0.0.1")
    assert client_of("") == "" and client_of("fe80::1%eth0") == client_of("fe80::2")


def test_guessing_the_token_is_slow_and_a_class_room_is_let_in() -> None:
    limits = Limits()
    assert sum(limits.admit("10.0.0.1", "POST", "/admin") for _ in range(100)) <= 11
    assert all(limits.admit("10.0.0.2", "POST", "/begin") for _ in range(100))
    assert sum(limits.admit("10.0.0.3", "POST", "/begin") for _ in range(1000)) <= 125
    assert sum(limits.admit("10.0.0.4", "GET", "/pair") for _ in range(20_000)) < 10_000


def test_form_tokens_belong_to_one_session_and_one_study() -> None:
    one, other = Seals(b"k" * 32, "t"), Seals(b"l" * 32, "t")
    session = new_session()
    assert valid_session(session) == session and one.form_holds(session, one.form(session))
    assert not one.form_holds(session, other.form(session))
    assert not one.form_holds(new_session(), one.form(session)) and not one.form_holds(None, one.form(session))
    for bad in (None, "", session + "\n", session[:-1], session[:-1] + "/", "\ud800" * 43):
        assert valid_session(bad) is None


def test_the_results_cookie_ends() -> None:
    seals = Seals(b"k" * 32, "t")
    cookie = seals.admin(now=1000)
    assert seals.admin_holds(cookie, now=1000 + ADMIN_SECONDS - 2)
    assert not seals.admin_holds(cookie, now=1000 + ADMIN_SECONDS + 2)
    expires, seal = cookie.split(".")
    assert not seals.admin_holds(f"{int(expires) + 9}.{seal}", now=1000)
    assert not Seals(b"k" * 32, "another token").admin_holds(cookie, now=1000)


@pytest.mark.parametrize(
    ("length", "refused"),
    [
        (None, 411),
        ("0", None),
        ("16384", None),
        ("16385", 413),
        ("9" * 40, 413),
        ("0" * 12 + "99999", 413),
        ("-1", 413),
        ("²", 413),
        ("x", 413),
    ],
)
def test_bodies_are_judged_by_their_header(length: str | None, refused: int | None) -> None:
    assert body_refused({} if length is None else {"content-length": length}) == refused

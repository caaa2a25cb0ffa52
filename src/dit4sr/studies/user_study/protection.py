"""What stands between the network and the study: security headers, limits, cookies and form tokens."""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import re
import secrets
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass

MOST_BODY = 16 * 1024
"""Bytes of a form; the study's own have a few hundred."""

ADMIN_SECONDS = 12 * 3600.0
"""How long the results stay open to a browser that gave the token."""

SESSION = re.compile(r"[A-Za-z0-9_-]{43}\Z")
"""A cookie of ours: 256 random bits."""

# No inline scripts or styles, nothing from elsewhere, and nobody frames the pages.
CONTENT_SECURITY_POLICY = "; ".join(
    [
        "default-src 'none'",
        "img-src 'self'",
        "style-src 'self'",
        "script-src 'self'",
        "form-action 'self'",
        "base-uri 'none'",
        "frame-ancestors 'none'",
    ]
)

HEADERS = {
    "Content-Security-Policy": CONTENT_SECURITY_POLICY,
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "same-origin",
    "Permissions-Policy": "camera=(), microphone=(), geolocation=()",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
}


def new_session() -> str:
    """The value of a volunteer's cookie."""
    return secrets.token_urlsafe(32)


def valid_session(value: str | None) -> str | None:
    """The cookie's value if it has the form of one of ours."""
    return value if value is not None and SESSION.match(value) else None


def same(a: str, b: str) -> bool:
    """Whether two texts are equal, in a time that does not tell where they differ."""
    return hmac.compare_digest(a.encode("utf-8", "surrogatepass"), b.encode("utf-8", "surrogatepass"))


@dataclass(frozen=True)
class Seals:
    """Form tokens and the results' cookie, made with the study's key, so that they outlive a restart.

    Attributes:
        key: 32 secret bytes.
        admin_token: what opens the results.
    """

    key: bytes
    admin_token: str

    def _seal(self, *words: str) -> str:
        return hmac.new(self.key, "\n".join(words).encode(), hashlib.sha256).hexdigest()

    def form(self, session: str) -> str:
        """The token in every form of this session."""
        return self._seal("form", session)

    def form_holds(self, session: str | None, token: str) -> bool:
        """Whether a form came from a page of this session."""
        return session is not None and same(self.form(session), token)

    def admin(self, now: float | None = None) -> str:
        """The cookie of who gave the admin token."""
        expires = str(int((time.time() if now is None else now) + ADMIN_SECONDS))
        return f"{expires}.{self._seal('admin', self.admin_token, expires)}"

    def admin_holds(self, cookie: str | None, now: float | None = None) -> bool:
        """Whether such a cookie is genuine and not too old."""
        expires, _, seal = (cookie or "").partition(".")
        if not same(seal, self._seal("admin", self.admin_token, expires)):
            return False
        return int(expires) > (time.time() if now is None else now)


class RateLimit:
    """A token bucket for each client address, in memory.

    Args:
        rate: requests a second in the long run.
        burst: requests at once.
        clients: addresses remembered; the longest unseen is forgotten first.
        clock: seconds, monotonic.
    """

    def __init__(
        self, rate: float, burst: int, clients: int = 10_000, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._rate, self._burst, self._clients, self._clock = rate, burst, clients, clock
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()
        self._lock = threading.Lock()

    def admits(self, address: str) -> bool:
        """Whether one more request may come from there now; it is counted."""
        with self._lock:
            now = self._clock()
            level, then = self._buckets.pop(address, (float(self._burst), now))
            level = min(self._burst, level + (now - then) * self._rate)
            admitted = level >= 1
            self._buckets[address] = (level - 1 if admitted else level), now
            if len(self._buckets) > self._clients:
                self._buckets.popitem(last=False)
            return admitted


class Limits:
    """The limits of a study. A class room behind one address is within them; a flood is not."""

    def __init__(self) -> None:
        self._any = RateLimit(rate=200, burst=2000)
        self._of: Mapping[str, RateLimit] = {
            "/begin": RateLimit(rate=0.5, burst=120),
            "/admin": RateLimit(rate=0.1, burst=10),
        }

    def admit(self, address: str, method: str, path: str) -> bool:
        """Whether a request may go on."""
        client = client_of(address)
        if not self._any.admits(client):
            return False
        special = self._of.get(path) if method == "POST" else None
        return special is None or special.admits(client)


def client_of(address: str) -> str:
    """Whom to count a request for: an IPv4 address, or the /64 network of an IPv6 one."""
    try:
        ip = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return address
    if isinstance(ip, ipaddress.IPv6Address):
        return str(ip.ipv4_mapped) if ip.ipv4_mapped else str(ipaddress.ip_network((ip, 64), strict=False))
    return str(ip)


def body_refused(headers: Mapping[str, str]) -> int | None:
    """The status that refuses a request's body by its headers; None where it may be read.

    The server holds a body to its Content-Length, so that nothing longer than :data:`MOST_BODY` is ever read. One in
    chunks would be read to its end whatever that header says, and no browser sends a form so.
    """
    length = headers.get("content-length")
    if length is None or "transfer-encoding" in headers:
        return 411
    readable = length.isascii() and length.isdigit() and len(length) < 10
    return None if readable and int(length) <= MOST_BODY else 413

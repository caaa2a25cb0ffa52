"""A real headless Chromium for the tests that open a page.

Such tests are skipped where a package that they need or Chromium is missing, unless DIT4SR_REQUIRE_BROWSER=1 demands
them. DIT4SR_CHROMIUM names the browser's program where it is not on the path.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

PATIENCE = 120_000
"""Milliseconds; a busy machine is slow, a broken page says nothing at all."""

REQUIRED = os.environ.get("DIT4SR_REQUIRE_BROWSER") == "1"
PROGRAMS = ("chromium", "chromium-browser", "google-chrome")
FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",  # every page must work offline
]


def need(*packages: str) -> None:
    """Skip the module (or the test) where a package is missing; where browsers are required, its import fails."""
    for package in packages if not REQUIRED else ():
        pytest.importorskip(package)


@contextmanager
def launched() -> Iterator[Any]:
    """Playwright's browser."""
    from playwright.sync_api import sync_playwright

    program = os.environ.get("DIT4SR_CHROMIUM") or next(filter(None, map(shutil.which, PROGRAMS)), None)
    if program is None:
        assert not REQUIRED, "DIT4SR_REQUIRE_BROWSER=1, and there is no Chromium: install it, or set DIT4SR_CHROMIUM"
        pytest.skip("no Chromium here")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=FLAGS, timeout=PATIENCE)
        yield browser
        browser.close()

"""A real HTTP server of a folder's files that fails by plan: refused, or cut in the middle of the body."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

Plan = Callable[[int, str], str]
"""(number from 1 among the requests of its method, path) → "serve", "refuse" (503) or "cut" (half of the body, then
closed; a HEAD, which has no body, is refused). The methods are counted apart because several workers mix them in any
order: what fails would else be chance."""


def one_in_ten(number: int, path: str) -> str:
    """Of each method every tenth request fails, the 7th by a cut, the 17th refused, and so on in turn."""
    if number % 10 != 7:
        return "serve"
    return "cut" if number % 20 == 7 else "refuse"


@dataclass
class Log:
    """What the server has done: requests of each method, paths asked for, and of these refused and cut."""

    url: str = ""
    methods: Counter[str] = field(default_factory=Counter)
    asked: list[str] = field(default_factory=list)
    refused: list[str] = field(default_factory=list)
    cut: list[str] = field(default_factory=list)


@contextmanager
def serving(folder: Path, plan: Plan = lambda number, path: "serve", *, ranges: bool = True) -> Iterator[Log]:
    """Serve the files of a folder at ``log.url``; without ``ranges`` a Range header is ignored."""
    log, lock = Log(), threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self.answer(body=False)

        def do_GET(self) -> None:
            self.answer(body=True)

        def answer(self, *, body: bool) -> None:
            with lock:
                log.asked.append(self.path)
                log.methods[self.command] += 1
                what = plan(log.methods[self.command], self.path)
                if what == "refuse" or (what == "cut" and not body):
                    log.refused.append(self.path)
                elif what == "cut":
                    log.cut.append(self.path)
            if what == "refuse" or (what == "cut" and not body):
                self.send_error(503)
                return
            file = folder / self.path.lstrip("/")
            if not file.is_file():
                self.send_error(404)
                return
            data, status, headers = file.read_bytes(), 200, {"ETag": f'"{file.stat().st_mtime_ns}"'}
            if ranges and (asked := self.headers.get("Range")):
                first, last = asked.removeprefix("bytes=").split("-")
                start, end = int(first), min(int(last or len(data) - 1) + 1, len(data))
                headers["Content-Range"] = f"bytes {start}-{end - 1}/{len(data)}"
                data, status = data[start:end], 206
            self.send_response(status)
            for name, value in {**headers, "Content-Length": str(len(data))}.items():
                self.send_header(name, value)
            self.end_headers()
            if body:
                self.wfile.write(data[: len(data) // 2] if what == "cut" else data)
            if what == "cut":
                self.wfile.flush()
                self.close_connection = True

        def log_message(self, *args: object) -> None:
            """Quiet."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        log.url = f"http://127.0.0.1:{server.server_address[1]}"
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield log
        finally:
            server.shutdown()
            thread.join()

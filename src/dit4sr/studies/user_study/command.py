"""The user study: volunteers see an LR image and two results of it, and answer two questions.

Actions: serve (makes the study of evaluations=… first, where there is none), create (makes it only), and results
(writes table.md, table.csv, answers.csv, preference.png and preference.pdf, also while volunteers answer).
"""

from __future__ import annotations

import os
import secrets
import socket
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dit4sr.errors import UserError
from dit4sr.studies.command import Request, outputs_folder, run_study, setting, write_csv, write_text

if TYPE_CHECKING:
    from dit4sr.studies.user_study.store import Store

FILE = "study.sqlite"
TOKEN_FILE = "admin_token.txt"
TOKEN_VARIABLE = "DIT4SR_STUDY_TOKEN"
ACTIONS = ("serve", "create", "results")

CONSENT = (
    "In this study you see pairs of pictures. Both were made from the same low-resolution picture by different "
    "methods, and you say which of the two you prefer, by two questions. There are no right or wrong answers in it, "
    "though a few pairs check that answers are given with care.",
    "Taking part is voluntary. You can stop at any time, come back later with the same browser, or withdraw, which "
    "deletes your answers.",
    "What is kept: your answers, when you gave them, and a random code. Neither your name nor your network address "
    "is. One cookie holds your place. The answers may be published without anything that tells who gave them.",
)


@dataclass
class Settings:
    """Settings of the study."""

    action: str = setting("serve, create or results; may be the first word alone", "serve")
    evaluations: list[str] = setting("folders of evaluate.py, each also as label=folder, for a new study", [])
    ours: str = setting("label of the method that is compared with each other one", "dit4sr")
    images: list[str] = setting("stems to show; []: all that every method restored", [])
    bicubic: bool = setting("whether bicubic upsampling is a competitor", False)
    length: int = setting("pairs for a volunteer, besides the attention checks", 20)
    checks: int = setting("attention checks for a volunteer", 2)
    allowed_failures: int | None = setting(
        "attention checks that one may fail and still be counted; null: as the study says, which is 0", None
    )
    title: str = setting("of the pages", "Image restoration study")
    contact: str = setting("whom volunteers may ask", "")
    consent: str | None = setting("text file that replaces the consent text; blank lines part paragraphs", None)
    hq: str | None = setting("where the ground truth is now, if it was moved", None)
    lq: str | None = setting("where the LR images are now, if they were moved", None)
    host: str = setting("address to serve at; 0.0.0.0 for all of this machine", "127.0.0.1")
    port: int = setting("port to serve at; 0: a free one", 7870)
    https: bool = setting("whether a proxy in front serves it by HTTPS", False)
    proxy: str | None = setting("address of that proxy, whose X-Forwarded-For is then believed", None)
    out: str | None = setting("folder of the study", None)


def main(arguments: list[str] | None = None) -> int:
    """The study's command line; its first word may be an action."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    if words and words[0] in ACTIONS:
        words[0] = f"action={words[0]}"
    return run_study("user_study", __doc__ or "", Settings, study, words)


def study(request: Request) -> int:
    """Make, serve or evaluate the study in the folder ``out``."""
    s: Settings = request.settings
    check(s)
    path = request.out / FILE
    if s.action == "results":
        return results(request.out, path, s)
    if s.action == "create" or s.evaluations or not path.exists():
        create(path, s)
    return 0 if s.action == "create" else serve(path, s)


def check(s: Settings) -> None:
    """Refuse settings that mean nothing.

    Raises:
        UserError: naming the setting.
    """
    if s.action not in ACTIONS:
        raise UserError(f"action={s.action}: choose {', '.join(ACTIONS[:-1])} or {ACTIONS[-1]}")
    for name, least in (("length", 1), ("checks", 0), ("allowed_failures", 0)):
        value = getattr(s, name)
        if value is not None and value < least:
            raise UserError(f"{name}={value}: give {least} or more")
    if not 0 <= s.port <= 65535:
        raise UserError(f"port={s.port}: give a port from 0 to 65535")
    if not s.title.strip():
        raise UserError("title=: give the pages a title")


def create(path: Path, s: Settings) -> None:
    """Make the study."""
    from dit4sr.studies.evaluations import read_evaluations
    from dit4sr.studies.user_study.importing import LEFT_OUT, create_study

    moved: dict[str, Any] = {name: Path(value) for name in ("lq", "hq") if (value := getattr(s, name))}
    found = [replace(e, **moved) for e in read_evaluations(s.evaluations, outputs_folder())]
    facts: dict[str, Any] = {name: getattr(s, name) for name in ("title", "contact", "length", "checks")}
    facts |= {"consent": consent_of(s.consent), "allowed_failures": s.allowed_failures or 0}
    counts = create_study(path, found, s.ours, facts, images=s.images, bicubic=s.bicubic)
    print(f"{path}: {', '.join(f'{name} {count}' for name, count in counts.items() if name != LEFT_OUT)}")
    if LEFT_OUT in counts:
        print(f"photos left out, for not every method has restored them: {counts[LEFT_OUT]}")


def consent_of(file: str | None) -> list[str]:
    """The consent text's paragraphs.

    Raises:
        UserError: the file cannot be read, or is empty.
    """
    if file is None:
        return list(CONSENT)
    try:
        text = Path(file).expanduser().read_text(encoding="utf-8")
    except (OSError, UnicodeError) as error:
        raise UserError(f"consent={file} is no readable text file ({error}): give one in UTF-8") from error
    paragraphs = [" ".join(part.split()) for part in text.split("\n\n") if part.strip()]
    if not paragraphs:
        raise UserError(f"consent={file} is empty: write what volunteers agree to")
    return paragraphs


def open_store(path: Path) -> Store:
    """The study's store."""
    from dit4sr.studies.user_study.store import Store

    return Store(path)


def serve(path: Path, s: Settings) -> int:
    """Serve the pages until a signal comes."""
    try:
        import uvicorn

        from dit4sr.studies.user_study.app import build_app
    except ImportError as error:
        raise UserError(f"{error.name} is not installed: pip install 'dit4sr[study]'") from error
    store = open_store(path)
    token = admin_token(path.with_name(TOKEN_FILE))
    app = build_app(store, token, https=s.https)
    listening = listen(s.host, s.port)
    host, port = listening.getsockname()[:2]
    # No access log: it would hold the volunteers' addresses.
    config = uvicorn.Config(
        app,
        log_level="warning",
        access_log=False,
        server_header=False,
        proxy_headers=s.proxy is not None,
        forwarded_allow_ips=s.proxy,
        lifespan="off",
        timeout_graceful_shutdown=5,
    )
    shown = f"[{host}]" if ":" in host else host
    print(f"volunteers: http://{shown}:{port}/", flush=True)
    where = f"the token is {TOKEN_VARIABLE}" if TOKEN_VARIABLE in os.environ else f"token in {path.parent / TOKEN_FILE}"
    print(f"results: http://{shown}:{port}/results ({where})", flush=True)
    try:
        uvicorn.Server(config).run(sockets=[listening])
    finally:
        store.close()
    return 0


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens there.

    Raises:
        UserError: the address is taken, or none of this machine's.
    """
    try:
        family, kind, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listening = socket.socket(family, kind)
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(address)
        listening.listen(1024)
    except OSError as error:
        raise UserError(f"host={host} port={port} cannot be served at ({error.strerror}): give others") from error
    return listening


def admin_token(file: Path) -> str:
    """What opens the results: DIT4SR_STUDY_TOKEN, else a random one kept in a file for its owner alone.

    Raises:
        UserError: it is too short to be safe, or cannot be kept.
    """
    token = os.environ.get(TOKEN_VARIABLE)
    where = TOKEN_VARIABLE
    if token is None:
        where = str(file)
        try:
            if not file.exists():
                descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
                with os.fdopen(descriptor, "w") as stream:
                    stream.write(secrets.token_urlsafe(24) + "\n")
            token = file.read_text(encoding="utf-8").strip()
        except (OSError, UnicodeError) as error:
            raise UserError(f"{file} cannot be read or written ({error}): set {TOKEN_VARIABLE}") from error
    if not 16 <= len(token) <= 128:
        raise UserError(f"{where}: the admin token has {len(token)} characters; give 16 to 128")
    return token


def results(out: Path, path: Path, s: Settings) -> int:
    """Write the results."""
    from dit4sr.files import write_atomically
    from dit4sr.studies.user_study.figure import draw
    from dit4sr.studies.user_study.results import answers_csv, rate_rows, summarise, table_text

    store = open_store(path)
    try:
        summary = summarise(store, s.allowed_failures)
        if not summary.rates:
            hint = "allowed_failures=<number> counts more of them" if summary.excluded else "serve the study first"
            raise UserError(f"{summary.counts} There is nothing to count yet: {hint}")
        write_text(out / "table.md", table_text(summary))
        write_csv(out / "table.csv", rate_rows(summary))
        write_text(out / "answers.csv", answers_csv(store, s.allowed_failures))
        for form in ("png", "pdf"):
            with write_atomically(out / f"preference.{form}") as temporary:
                temporary.write_bytes(draw(summary, form))
    finally:
        store.close()
    names = ("table.md", "table.csv", "answers.csv", "preference.png", "preference.pdf")
    print("\n".join([table_text(summary), "", *(str(out / name) for name in names)]))
    return 0

"""The web application: consent, one comparison a page, thanks; and the results behind a token.

No request names a file: pages and pictures come from memory and from the database. Method names appear on the
results' pages alone.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from importlib.resources import files
from typing import Annotated, Any, Literal

from fastapi import FastAPI, Form, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, RedirectResponse, Response
from jinja2 import Environment, PackageLoader, StrictUndefined
from starlette.exceptions import HTTPException

from dit4sr.studies.user_study.protection import (
    HEADERS,
    Limits,
    Seals,
    body_refused,
    new_session,
    same,
    valid_session,
)
from dit4sr.studies.user_study.store import Store, Volunteer

SIXTY_DAYS = 60 * 24 * 3600

ICON = (
    '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 16 16"><rect width="16" height="16" rx="3" fill="#0f766e"/>'
    '<path d="M3 4h4v8H3zM9 4h4v8H9z" fill="#fff"/></svg>'
)

ERRORS = {
    400: ("That cannot be read", "The form was not complete. Go back and answer both questions."),
    401: ("A token is needed", "The results are open to those who run the study."),
    403: ("This page is out of date", "Start again from the first page. The study needs cookies to know your place."),
    404: ("There is nothing here", "Go to the first page."),
    405: ("There is nothing here", "Go to the first page."),
    411: ("That cannot be read", "The request did not say how long it is."),
    413: ("That is too long", "The study has no form as long as that."),
    429: ("Too many requests", "Wait a minute and try again. Nothing that you answered is lost."),
    500: (
        "Something went wrong here",
        "Your answers are kept, but perhaps not the last one. Go on from the first page.",
    ),
}
"""Status → heading and text of its page; they tell nothing about the inside."""

Code = Annotated[str, Form(max_length=128)]


def build_app(store: Store, admin_token: str, *, https: bool = False, limits: Limits | None = None) -> FastAPI:
    """The application.

    Args:
        store: of the study.
        admin_token: opens the results.
        https: whether volunteers reach it by HTTPS (through a proxy); cookies are then sent by it alone.
        limits: of requests; None for the usual ones.
    """
    app = FastAPI(openapi_url=None, docs_url=None, redoc_url=None, redirect_slashes=False)
    pages = Environment(loader=PackageLoader(__package__, "pages"), autoescape=True, undefined=StrictUndefined)
    pages.globals["title"] = store.facts["title"]
    seals = Seals(store.key, admin_token)
    limits = limits or Limits()
    prefix = "__Host-" if https else ""
    volunteer_cookie, admin_cookie = f"{prefix}volunteer", f"{prefix}admin"

    def page(name: str, status: int = 200, **values: Any) -> HTMLResponse:
        html = pages.get_template(f"{name}.html").render(values)
        return HTMLResponse(html, status, headers={"Cache-Control": "no-store"})

    def failed(status: int) -> HTMLResponse:
        status = status if status in ERRORS else 400
        heading, text = ERRORS[status]
        return page("error", status, heading=heading, text=text)

    def go(where: Literal["/", "/pair", "/done", "/admin", "/results"]) -> RedirectResponse:
        return RedirectResponse(where, 303, headers={"Cache-Control": "no-store"})

    def session_of(request: Request) -> str | None:
        return valid_session(request.cookies.get(volunteer_cookie))

    def remember(response: Response, session: str) -> None:
        # Lax, not Strict: a volunteer who comes back by the link in a mail is to find their place.
        response.set_cookie(
            volunteer_cookie, session, max_age=SIXTY_DAYS, path="/", secure=https, httponly=True, samesite="lax"
        )

    def volunteer_of(request: Request, csrf: str | None = None) -> Volunteer | None:
        """Who asks; with the token of a form, only if the form is theirs."""
        session = session_of(request)
        if csrf is not None and not seals.form_holds(session, csrf):
            raise HTTPException(403)
        return None if session is None else store.volunteer(session)

    def with_form(request: Request, name: str, **values: Any) -> HTMLResponse:
        """A page with a form, for somebody who may not have a cookie yet."""
        session = session_of(request) or new_session()
        response = page(name, csrf=seals.form(session), **values)
        remember(response, session)
        return response

    @app.middleware("http")
    async def guard(request: Request, proceed: Callable[[Request], Awaitable[Response]]) -> Response:
        response: Response
        address = request.client.host if request.client else ""
        refused = body_refused(request.headers) if request.method not in ("GET", "HEAD") else None
        if not limits.admit(address, request.method, request.url.path):
            response = failed(429)
            response.headers["Retry-After"] = "60"
        elif refused is not None:
            response = failed(refused)
        else:
            try:
                response = await proceed(request)
            except Exception:
                logging.getLogger("uvicorn.error").exception("a request failed")
                response = failed(500)
        response.headers.update(HEADERS)
        if https:
            response.headers["Strict-Transport-Security"] = "max-age=31536000"
        return response

    @app.exception_handler(HTTPException)
    async def refuse(request: Request, error: HTTPException) -> Response:
        return failed(error.status_code)

    @app.exception_handler(RequestValidationError)
    async def misread(request: Request, error: RequestValidationError) -> Response:
        return failed(400)

    @app.get("/")
    def welcome(request: Request) -> Response:
        volunteer = volunteer_of(request)
        if volunteer is not None:
            return go("/pair")
        facts = store.facts
        return with_form(
            request, "welcome", consent=facts["consent"], contact=facts["contact"], steps=store.steps_each()
        )

    @app.post("/begin")
    def begin(request: Request, csrf: Code, agree: Annotated[Literal["yes"], Form()]) -> Response:
        session = session_of(request)
        if session is None or not seals.form_holds(session, csrf):
            raise HTTPException(403)
        store.join(session)
        response = go("/pair")
        remember(response, session)
        return response

    @app.get("/pair")
    def pair(request: Request) -> Response:
        volunteer = volunteer_of(request)
        if volunteer is None:
            return go("/")
        screen = store.screen(volunteer)
        if screen is None:
            return go("/done")
        return with_form(request, "pair", screen=screen, code=volunteer.code)

    @app.post("/pair")
    def answer(
        request: Request,
        csrf: Code,
        step: Code,
        realism: Annotated[Literal["left", "right"], Form()],
        fidelity: Annotated[Literal["left", "right"], Form()],
    ) -> Response:
        volunteer = volunteer_of(request, csrf)
        if volunteer is None or not store.answer(volunteer, step, realism, fidelity):
            raise HTTPException(403)
        return go("/pair")

    @app.get("/done")
    def done(request: Request) -> Response:
        volunteer = volunteer_of(request)
        if volunteer is None:
            return go("/")
        if store.screen(volunteer) is not None:
            return go("/pair")
        return with_form(request, "done", code=volunteer.code, contact=store.facts["contact"])

    @app.get("/withdraw")
    def leave(request: Request) -> Response:
        volunteer = volunteer_of(request)
        return go("/") if volunteer is None else with_form(request, "withdraw", code=volunteer.code)

    @app.post("/withdraw")
    def withdraw(request: Request, csrf: Code) -> Response:
        volunteer = volunteer_of(request, csrf)
        if volunteer is not None:
            store.withdraw(volunteer)
        response = page("withdrawn")
        response.delete_cookie(volunteer_cookie, path="/", secure=https, httponly=True, samesite="lax")
        return response

    @app.get("/image/{token}")
    def image(request: Request, token: str) -> Response:
        volunteer = volunteer_of(request)
        png = None if volunteer is None else store.picture(volunteer, token)
        if png is None:
            raise HTTPException(404)
        return Response(png, media_type="image/png", headers={"Cache-Control": "private, max-age=86400, immutable"})

    @app.get("/admin")
    def ask(request: Request) -> Response:
        return with_form(request, "admin", refused=False)

    @app.post("/admin")
    def enter(request: Request, csrf: Code, token: Code) -> Response:
        if not seals.form_holds(session_of(request), csrf):
            raise HTTPException(403)
        if not same(token, admin_token):
            response: Response = with_form(request, "admin", refused=True)
            response.status_code = 401
            return response
        response = go("/results")
        response.set_cookie(admin_cookie, seals.admin(), path="/", secure=https, httponly=True, samesite="strict")
        return response

    def admitted(request: Request) -> bool:
        scheme, _, given = request.headers.get("authorization", "").partition(" ")
        if scheme.lower() == "bearer" and same(given, admin_token):
            return True
        return seals.admin_holds(request.cookies.get(admin_cookie))

    @app.get("/results")
    def results(request: Request) -> Response:
        from dit4sr.studies.user_study.results import percent, summarise

        if not admitted(request):
            return go("/admin")
        return page("results", summary=summarise(store), ours=store.facts["ours"], percent=percent)

    @app.get("/results/answers.csv")
    def answers(request: Request) -> Response:
        from dit4sr.studies.user_study.results import answers_csv

        if not admitted(request):
            raise HTTPException(401)
        attached = {"Content-Disposition": 'attachment; filename="answers.csv"', "Cache-Control": "no-store"}
        return Response(answers_csv(store), media_type="text/csv", headers=attached)

    @app.get("/results/preference.png")
    def figure(request: Request) -> Response:
        from dit4sr.studies.user_study.figure import draw
        from dit4sr.studies.user_study.results import summarise

        if not admitted(request):
            raise HTTPException(401)
        return Response(draw(summarise(store), "png"), media_type="image/png", headers={"Cache-Control": "no-store"})

    def fixed(name: str, media_type: str, content: str) -> None:
        """A file of the page's own, kept in memory."""
        app.add_api_route(
            f"/{name}", lambda: Response(content, media_type=media_type, headers={"Cache-Control": "max-age=300"})
        )

    for name, media_type in (("study.css", "text/css"), ("study.js", "text/javascript")):
        fixed(name, media_type, files(__package__).joinpath("pages", name).read_text(encoding="utf-8"))
    fixed("icon.svg", "image/svg+xml", ICON)
    return app

"""Addresses pages had before, and addresses that lead nowhere."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, RedirectResponse, Response
from starlette.routing import Route

from ui.frame import Page, navigation
from ui.pages import pages
from ui.templates import render

NOWHERE = Page("", "", lambda: None, 0, section="")  # no page of the navigation


def moved_routes(pages: Iterable[Page]) -> list[Route]:
    """Redirects from the addresses the pages had before; the query stays."""
    return [
        Route(f"/{old}", _redirect(page.path), methods=["GET"], name=old)
        for page in pages
        for old in page.moved_from
    ]


def _redirect(path: str) -> Callable[[Request], Response]:
    def redirect(request: Request) -> Response:
        query = f"?{request.url.query}" if request.url.query else ""
        return RedirectResponse(f"{path or './'}{query}", 308)

    return redirect


def not_found(request: Request, error: Exception) -> Response:
    """A page for people, JSON for programs."""
    status = error.status_code if isinstance(error, HTTPException) else 404
    if status == 404 and "text/html" in request.headers.get("accept", ""):
        path = request.url.path
        root = "../" * (path.count("/") - 1)  # also behind the prefix of a proxy
        sections, _ = navigation(NOWHERE, pages())
        page = render("templates/not_found.html", path=path[:200], root=root, sections=sections)
        return HTMLResponse(page, 404)
    detail = error.detail if isinstance(error, HTTPException) else "Not found"
    return JSONResponse({"detail": detail}, status)

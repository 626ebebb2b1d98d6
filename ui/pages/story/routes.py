"""Endpoints of stories: adding a view from any page, presenting, phones that follow with a code of
six letters, and links with a QR code. Only hosts change and present stories. Presentations are kept
in memory."""

import secrets
import socket
from collections.abc import Callable
from dataclasses import replace
from io import BytesIO
from typing import Annotated, Any
from urllib.parse import urljoin

import segno
from pydantic import AfterValidator, Field, TypeAdapter, ValidationError
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, RedirectResponse, Response
from starlette.routing import Route

from backend.backup import examples
from backend.errors import ConfigError, NotFoundError, SlimscopeError
from backend.queue import stories as writing
from backend.queue.actor import Actor
from backend.queue.permissions import may_not_change, require
from backend.queue.stories import ADDRESS, StoryView, stored_views, story
from backend.settings import settings, space_host
from jobs.serving.openai_format import StrictBody
from ui.api_errors import error_response
from ui.format import href
from ui.pages.story.slides import described_runs, drawable, number_of, page_of, presented
from ui.security.auth import current_user
from ui.templates import fragments, render

HTML = fragments("pages/story/share.html")
LETTERS = "ABCDEFGHJKLMNPQRSTUVWXYZ"  # without I and O
CODE, MOST = 6, 100  # letters of a code; maximum number of presentations


def _page_address(text: str) -> str:
    if not ADDRESS.fullmatch(text):
        raise ValueError("it is no page of this dashboard")
    return text


Address = Annotated[str, AfterValidator(_page_address)]


class NewView(StrictBody):
    """A view to add to a story, or to a new story (0) with a title; `at`: its position."""

    story: int = Field(ge=0, le=2**53)
    title: str = Field("", max_length=writing.TITLE_LETTERS)
    address: Address
    chart: str = Field("", max_length=61)
    text: str = Field("", max_length=writing.TEXT_LETTERS)
    at: int = Field(writing.MAX_VIEWS, ge=0, le=writing.MAX_VIEWS)

    @property
    def view(self) -> StoryView:
        """The view, if this version has its page and its chart."""
        view = StoryView(1, self.address, self.chart, self.text)
        page = page_of(view)
        if page is None or (view.chart and view.chart not in page.charts):
            raise ConfigError("The view was not added.", "There is no such page or chart.")
        return view


class PresentedView(StrictBody):
    """The view that followers see: its story (0: none), and the live state of its page."""

    code: str = Field("", max_length=CODE)
    story: int = Field(ge=0, le=2**53)
    at: int = Field(ge=0, lt=writing.MAX_VIEWS)
    address: Address = ""


class Presentations(dict[str, PresentedView]):
    """The presented views by code; the oldest are dropped."""

    def show(self, view: PresentedView) -> str:
        """Present a view under its code, a new one if unknown; return the code."""
        code = view.code
        if self.pop(code, None) is None:
            code = "".join(secrets.choice(LETTERS) for _ in range(CODE))
        while len(self) >= MOST:
            del self[next(iter(self))]
        self[code] = view
        return code


_presentations = Presentations()


def routes() -> list[Route]:
    return [
        Route("/slimscope/story", _guarded(presenter)),
        Route("/slimscope/follow", _guarded(follower)),
        Route("/slimscope/presented", _guarded(presented_view)),
        Route("/slimscope/presented", _guarded(present), methods=["POST"]),
        Route("/slimscope/share", _guarded(share)),
        Route("/slimscope/share", _guarded(add), methods=["POST"]),
        Route("/slimscope/qr", _guarded(qr)),
    ]


def _guarded(handler: Callable[[Request, bytes], Response]) -> Callable[..., object]:
    """Create an endpoint that runs a handler with the request body in a thread and answers its
    errors."""

    async def endpoint(request: Request) -> Response:
        try:
            return await run_in_threadpool(handler, request, await request.body())
        except ValidationError as error:
            why = error.errors(include_url=False, include_input=False)[0]["msg"]
            return error_response(ConfigError("The request is invalid.", f"{why}."))
        except SlimscopeError as error:
            return error_response(error)

    return endpoint


def presenter(request: Request, _: bytes) -> Response:
    """The slides of the story `?n=`, presented from `&at=`; with `&live`, the pages themselves;
    with `?tour`, the bundled story. Or the single page `?view=`."""
    fields, is_tour = request.query_params, "tour" in request.query_params
    tours = examples.installed_stories().values() if is_tour else []
    number, address = next(iter(tours), number_of(fields.get("n", ""))), fields.get("view", "")
    settings = {
        "hosts": current_user(request).role == "host",
        "presents": bool(is_tour or address or "at" in fields),
        "at": number_of(fields.get("at", "")),
    }
    return _slides(number, address, settings, is_live=is_tour or "live" in fields)


def follower(request: Request, _: bytes) -> Response:
    """The slides presented under `?code=`; without a code, a form to enter it."""
    code = request.query_params.get("code", "").strip().upper()
    view = _presentations.get(code)
    if view is None:
        return HTMLResponse(render("templates/follow.html", is_unknown=bool(code)))
    address = "" if view.story else view.address
    return _slides(view.story, address, {"follows": code, "at": view.at})


def _slides(number: int, address: str, settings: dict[str, Any], is_live: bool = False) -> Response:
    if address:
        views = [StoryView(1, TypeAdapter(Address).validate_python(address))]
        return HTMLResponse(presented("Presentation", views, settings | {"story": 0}, address))
    leave = str(href("story", n=number))
    try:
        row = story(number)
    except NotFoundError:
        return RedirectResponse(f"../{leave}")  # the page shows the error
    views = [replace(view, chart="" if is_live else view.chart) for view in stored_views(row.views)]
    return HTMLResponse(presented(row.title, views, settings | {"story": number}, leave))


def presented_view(request: Request, _: bytes) -> Response:
    """The view presented with `?code=`."""
    view = _presentations.get(request.query_params.get("code", "").upper())
    if view is None:
        raise NotFoundError("Nothing is presented with this code.")
    return JSONResponse(view.model_dump(exclude={"code"}))


def present(request: Request, body: bytes) -> Response:
    """Present a view; return its code, and the address of the dashboard for phones."""
    actor = current_user(request)
    require(actor, "present", may_not_change(actor))
    view = PresentedView.model_validate_json(body)
    return JSONResponse({"code": _presentations.show(view), "base": base_address(request)})


def share(request: Request, _: bytes) -> Response:
    """The dialog to share the view `?address=`, with `&chart=` selected."""
    address = TypeAdapter(Address).validate_python(request.query_params.get("address", ""))
    return _dialog(request, address, request.query_params.get("chart", ""))


def _dialog(
    request: Request, address: str, chart: str, story: int = 0, error: SlimscopeError | None = None
) -> Response:
    base, view = base_address(request), StoryView(1, address)
    charts = drawable(view)
    html = HTML.dialog(
        address,
        urljoin(base or str(request.base_url), address),
        bool(base),
        charts,
        chart or next((name for name, part in charts.items() if part.figure), ""),
        writing.stories(),
        story,
        described_runs(view)[: writing.TITLE_LETTERS],
        may_not_change(current_user(request)),
        error,
    )
    return HTMLResponse(html, error_response(error).status_code if error else 200)


def add(request: Request, body: bytes) -> Response:
    """Add a view to a story or to a new one; return the dialog with a confirmation."""
    new = NewView.model_validate_json(body)
    try:
        number = add_view(new, current_user(request))
    except SlimscopeError as error:
        return _dialog(request, new.address, new.chart, error=error)
    return _dialog(request, new.address, new.chart, number)


def add_view(new: NewView, actor: Actor) -> int:
    """Add a view; return the number of its story."""
    view = new.view
    if new.story:
        writing.add_view(new.story, view.address, view.chart, view.text, actor, new.at)
        return new.story
    return writing.create_story(new.title, actor, [view])


def qr(request: Request, _: bytes) -> Response:
    """A QR code of the page at `?address=`, as SVG."""
    address = request.query_params.get("address", "")
    TypeAdapter(Address).validate_python(address.removeprefix("slimscope/"))
    image = BytesIO()
    code = segno.make(urljoin(base_address(request) or str(request.base_url), address), error="m")
    code.save(image, kind="svg", scale=6, border=2, dark="#000", light="#fff")
    return Response(image.getvalue(), media_type="image/svg+xml")


def base_address(request: Request) -> str:
    """The URL for other machines, ending with a slash; "" without one."""
    if space_host():
        return f"https://{space_host()}/"
    if not settings().shared:
        return ""
    name = request.url.hostname or ""
    if name in ("localhost", "127.0.0.1", "::1"):
        name = _own_address()
    port = f":{request.url.port}" if request.url.port else ""
    return f"{request.url.scheme}://{f'[{name}]' if ':' in name else name}{port}/"


def _own_address() -> str:
    """The network address of this machine. Connecting a UDP socket sends no data; it only selects
    the interface."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))  # reserved for documentation
            return str(probe.getsockname()[0])
        except OSError:
            return socket.gethostname()

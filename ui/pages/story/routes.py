"""Requests of stories: adding a view from any page, presenting, phones that follow under a code of
six letters, and links with a QR code. Only hosts change and present; what is presented is in
memory."""

import secrets
import socket
import time
from collections.abc import Callable
from dataclasses import replace
from functools import wraps
from io import BytesIO
from typing import Annotated
from urllib.parse import urljoin

import segno
from pydantic import AfterValidator, Field, TypeAdapter, ValidationError
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import Route

from backend.errors import ConfigError, NotFoundError, SlimscopeError
from backend.queue import stories as writing
from backend.queue.permissions import may_not_change, require
from backend.queue.stories import ADDRESS, StoryView, stored_views, story
from backend.settings import settings, space_host
from jobs.serving.openai_format import StrictBody
from ui import pages
from ui.api_errors import error_response
from ui.format import href
from ui.frame import Page
from ui.pages.story.slides import presented
from ui.security.auth import current_user
from ui.templates import fragments, render

HTML = fragments("pages/story/share.html")
LETTERS = "ABCDEFGHJKLMNPQRSTUVWXYZ"  # without I and O
CODE, MOST = 6, 100  # letters of a code; presentations at once
EXPIRY_S = 3600.0  # without a sign of the presenter


def _page_address(text: str) -> str:
    if not ADDRESS.fullmatch(text):
        raise ValueError("it is no page of this dashboard")
    return text


Address = Annotated[str, AfterValidator(_page_address)]


class NewView(StrictBody):
    """A view to be added to a story, or to a new one (0)."""

    story: int = Field(ge=0, le=2**53)
    address: Address
    chart: str = Field("", max_length=61)
    text: str = Field("", max_length=writing.TEXT_LETTERS)


class PresentedView(StrictBody):
    """The view that followers show: of a story (0: none), and the live state of its page."""

    code: str = Field("", max_length=CODE)
    story: int = Field(ge=0, le=2**53)
    at: int = Field(ge=0, lt=writing.MAX_VIEWS)
    address: Address = ""


class Presentations:
    """The presented views by code; the oldest are dropped."""

    def __init__(self) -> None:
        self._shown: dict[str, tuple[PresentedView, float]] = {}

    def show(self, view: PresentedView) -> str:
        """Present a view under its code, a new one if unknown; return the code."""
        now, code = time.monotonic(), view.code
        self._shown = {c: s for c, s in self._shown.items() if now - s[1] < EXPIRY_S}
        if code not in self._shown:
            code = "".join(secrets.choice(LETTERS) for _ in range(CODE))
        while len(self._shown) >= MOST:
            del self._shown[next(iter(self._shown))]
        self._shown[code] = view, now
        return code

    def view(self, code: str) -> PresentedView:
        """The presented view.

        Raises:
            NotFoundError: nothing is presented with the code.
        """
        if code.upper() not in self._shown:
            raise NotFoundError("Nothing is presented with this code.")
        return self._shown[code.upper()][0]


_presentations = Presentations()
Handler = Callable[[Request, bytes], Response]


def routes() -> list[Route]:
    return [
        Route("/slimscope/story", _guarded(presenter)),
        Route("/slimscope/follow", _guarded(follower)),
        Route("/slimscope/presented", _guarded(presented_view)),
        Route("/slimscope/presented", _guarded(present), methods=["POST"]),
        Route("/slimscope/share", _guarded(share)),
        Route("/slimscope/share", _guarded(add), methods=["POST"]),
        Route("/slimscope/qr", qr),
    ]


def _guarded(handler: Handler) -> Callable[..., object]:
    """An endpoint that runs a handler with the body in a thread, and answers its errors."""

    @wraps(handler)
    async def endpoint(request: Request) -> Response:
        try:
            return await run_in_threadpool(handler, request, await request.body())
        except ValidationError as error:
            first = error.errors(include_url=False, include_input=False)[0]
            field = ".".join(map(str, first["loc"])) or "body"
            return error_response(ConfigError(f"{field} is invalid.", f"{first['msg']}."))
        except SlimscopeError as error:
            return error_response(error)

    return endpoint


def presenter(request: Request, _: bytes) -> Response:
    """The slides of the story `?n=`, presented from `&at=`; with `&live` the pages themselves. Or
    the single page `?view=`."""
    fields = request.query_params
    hosts = current_user(request).role == "host"
    settings = {"story": 0, "hosts": hosts, "presents": True, "at": _number(fields.get("at"))}
    if address := fields.get("view", ""):
        view = TypeAdapter(Address).validate_python(address)
        page = presented("Presentation", [StoryView(1, view)], settings, view)
        return HTMLResponse(page)
    row = story(_number(fields.get("n")))
    settings |= {"story": row.id, "presents": "at" in fields}
    views, leave = stored_views(row.views), str(href("story", n=row.id))
    if "live" in fields:
        views = [replace(view, chart="") for view in views]
    return HTMLResponse(presented(row.title, views, settings, leave))


def follower(request: Request, _: bytes) -> Response:
    """The slides that are presented with `?code=`; without one, the form that asks for it."""
    code = request.query_params.get("code", "").strip().upper()
    try:
        shown = _presentations.view(code)
    except NotFoundError as error:
        said = error.what if code else ""
        return HTMLResponse(render("templates/follow.html", problem=said))
    settings = {"story": shown.story, "follows": code, "at": shown.at}
    if not shown.story:
        views = [StoryView(1, shown.address)]
        return HTMLResponse(presented("Presentation", views, settings, "./"))
    row = story(shown.story)
    return HTMLResponse(presented(row.title, stored_views(row.views), settings, "./"))


def presented_view(request: Request, _: bytes) -> Response:
    """The view presented with `?code=`."""
    view = _presentations.view(request.query_params.get("code", ""))
    return JSONResponse(view.model_dump(exclude={"code"}))


def present(request: Request, body: bytes) -> Response:
    """Present a view; return its code, and the address of the dashboard for phones."""
    actor = current_user(request)
    require(actor, "present", may_not_change(actor))
    code = _presentations.show(PresentedView.model_validate_json(body))
    return JSONResponse({"code": code, "base": base_address(request)})


def share(request: Request, _: bytes) -> Response:
    """The dialog that shares the view `?address=`, with `&chart=` selected."""
    address = TypeAdapter(Address).validate_python(request.query_params.get("address", ""))
    return _dialog(request, address, request.query_params.get("chart", ""))


def _dialog(
    request: Request, address: str, chart: str, story: int = 0, error: SlimscopeError | None = None
) -> Response:
    base, page = base_address(request), _page_of(StoryView(1, address))
    html = HTML.dialog(
        address,
        urljoin(base or str(request.base_url), address),
        bool(base),
        [(name, each.title) for name, each in page.charts.items()] if page else [],
        chart,
        writing.stories(),
        story,
        may_not_change(current_user(request)),
        error,
    )
    return HTMLResponse(html, error_response(error).status_code if error else 200)


def add(request: Request, body: bytes) -> Response:
    """Add a view to a story, or to a new one; return the dialog, which says so."""
    actor, new = current_user(request), NewView.model_validate_json(body)
    try:
        view = StoryView(1, new.address, new.chart, new.text)
        page, number = _page_of(view), new.story
        if page is None or (view.chart and view.chart not in page.charts):
            raise ConfigError("The view was not added.", "There is no such page or chart.")
        if number:
            writing.add_view(number, view.address, view.chart, view.text, actor)
        else:
            number = writing.create_story(f"Story of {page.name}", actor, [view])
    except SlimscopeError as error:
        return _dialog(request, new.address, new.chart, error=error)
    return _dialog(request, new.address, new.chart, number)


def _page_of(view: StoryView) -> Page | None:
    return next((page for page in pages.pages() if page.path == view.page), None)


def _number(text: str | None) -> int:
    return int(text) if text and text.isdecimal() and len(text) < 16 else 0


def qr(request: Request) -> Response:
    """A QR code of the page at `?address=`, as SVG."""
    address = request.query_params.get("address", "")
    if not ADDRESS.fullmatch(address.removeprefix("slimscope/")):
        return JSONResponse({"detail": "It is no page of this dashboard."}, 422)
    base = base_address(request) or str(request.base_url)
    image = BytesIO()
    try:
        code = segno.make(urljoin(base, address), error="m")
    except segno.DataOverflowError:
        return JSONResponse({"detail": "The address is too long for a QR code."}, 422)
    code.save(image, kind="svg", scale=6, border=2, dark="#000", light="#fff")
    return Response(image.getvalue(), media_type="image/svg+xml")


def base_address(request: Request) -> str:
    """Address for other machines, ending with a slash; "" without one."""
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
    """Address of this machine in its network. Connecting a UDP socket sends nothing, it only
    chooses the interface."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))  # reserved for documentation
            return str(probe.getsockname()[0])
        except OSError:
            return socket.gethostname()

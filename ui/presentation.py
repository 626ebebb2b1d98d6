"""Presenting the dashboard: links with a QR code, a full screen that plays through views, and
phones that follow it under a code of six letters. Only a host presents; what is presented is in
memory."""

import re
import secrets
import socket
import time
from io import BytesIO
from urllib.parse import urljoin

import segno
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import Route

from backend.settings import settings, space_host
from ui.security.auth import current_user
from ui.templates import render

LETTERS = "ABCDEFGHJKLMNPQRSTUVWXYZ"  # without I and O
CODE, MOST = 6, 100  # letters of a code; presentations at once
EXPIRY_S = 3600.0  # without a sign of the presenter
ADDRESS = re.compile(r"(\./)?[\w\-]*(\?[\w\-.~%&=+,:@/()*!']{0,2000})?")  # of a page of ours


class Presentations:
    def __init__(self) -> None:
        self._shown: dict[str, tuple[str, float]] = {}

    def show(self, code: str, address: str) -> str:
        """Presents an address under a code, a new one if unknown; returns the code."""
        now = time.monotonic()
        self._shown = {c: s for c, s in self._shown.items() if now - s[1] < EXPIRY_S}
        if code not in self._shown:
            code = "".join(secrets.choice(LETTERS) for _ in range(CODE))
        while len(self._shown) >= MOST:
            del self._shown[next(iter(self._shown))]
        self._shown[code] = address, now
        return code

    def address(self, code: str) -> str | None:
        found = self._shown.get(code.upper())
        return found[0] if found else None


_presentations = Presentations()


def routes() -> list[Route]:
    return [
        Route("/slimscope/present", presenter),
        Route("/slimscope/follow", follower),
        Route("/slimscope/presented", presented, methods=["GET", "POST"]),
        Route("/slimscope/share", share),
        Route("/slimscope/qr", qr),
    ]


def presenter(request: Request) -> Response:
    view = request.query_params.get("view", "")
    view = view if ADDRESS.fullmatch(view) else ""
    hosts = current_user(request).role == "host"
    return HTMLResponse(render("templates/present.html", view=view, follows="", hosts=hosts))


def follower(request: Request) -> Response:
    code = request.query_params.get("code", "").strip().upper()[:CODE]
    if not code:
        return HTMLResponse(render("templates/follow.html"))
    return HTMLResponse(render("templates/present.html", view="", follows=code, hosts=False))


async def presented(request: Request) -> Response:
    """GET: the address presented under `?code=`. POST, of a host: present `{"code", "address"}`."""
    if request.method == "GET":
        address = _presentations.address(request.query_params.get("code", ""))
        return JSONResponse({"address": address}, 200 if address is not None else 404)
    if current_user(request).role != "host":
        return JSONResponse({"detail": "Only a host can present."}, 403)
    try:
        asked = await request.json()
        address, code = str(asked["address"]), str(asked.get("code", ""))
    except (ValueError, KeyError, TypeError, AttributeError):
        return JSONResponse({"detail": "An address is missing."}, 422)
    if not ADDRESS.fullmatch(address):
        return JSONResponse({"detail": "It is no page of this dashboard."}, 422)
    return JSONResponse({"code": _presentations.show(code, address)})


def share(request: Request) -> Response:
    return JSONResponse({"base": base_address(request)})


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

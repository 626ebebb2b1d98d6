"""What every request passes before a page or the API sees it, and what every answer carries.

Refused are: a host name that is not ours (a hostile site can point its own name at this machine),
requests other sites make a visitor's browser send, doors of Gradio that no page of ours uses
(files, uploads, fetching of addresses, direct calls), large bodies, and a wrong token.
"""

from __future__ import annotations

import base64
import hashlib
import ipaddress
import re
import secrets
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from backend.errors import ForbiddenError, NotFoundError, RateLimitError, SlimscopeError
from backend.queue.roles import ASK, reject
from backend.settings import is_loopback, settings
from ui.api import PATH, told
from ui.security import auth

MOST_BYTES = 1_000_000  # of a request's body; the largest a page sends is the end of a log, 65 kB
GRADIO = "/gradio_api/"
OPEN = re.compile(
    r"(queue/(join|data)|run/predict|heartbeat/\w+|cancel|reset|app_id|startup-events)/?"
)
CLOSED = ("/monitoring", "/login", "/logout", "/config", "/svelte/", "/custom_component/")
HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), microphone=(), geolocation=()",
}
# Gradio makes functions of text (`js_on_load`, templates) and sets style attributes; the rest of
# what a page may load is what we serve. Inline scripts run only with the page's nonce.
POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-eval' 'nonce-{nonce}' {hashes}; "
    "style-src 'self' 'unsafe-inline'; img-src 'self' data: blob:; font-src 'self' data:; "
    "worker-src 'self' blob:; object-src 'none'; base-uri 'self'; form-action 'self'; "
    "frame-ancestors 'none'"
)


def hash_of(script: str) -> str:
    """A Content-Security-Policy source that lets this very script run."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'"


class SecurityMiddleware:
    """ASGI middleware.

    Args:
        scripts: inline scripts that Gradio puts into pages in the browser.
    """

    def __init__(self, app: ASGIApp, scripts: tuple[str, ...] = ()) -> None:
        self.app = app
        self.hashes = " ".join(map(hash_of, scripts))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        answer, request = SecuredSend(send, self.hashes), Request(scope)
        try:
            check(request)
        except RequestRejectedError as stop:
            client = request.client.host if request.client else ""
            reject(f"{client} {request.method} {request.url.path[:200]}".strip(), stop.error)
            await stop.response(scope["path"])(scope, receive, answer)
            return
        await self.app(_named(scope, answer), receive, answer)


class RequestRejectedError(Exception):
    """A request that goes no further."""

    def __init__(self, status: int, error: SlimscopeError) -> None:
        self.status, self.error = status, error

    def response(self, path: str) -> Response:
        """JSON for programs, a sentence for people."""
        if path.startswith(PATH):
            return told(self.error, self.status)
        return PlainTextResponse(str(self.error), self.status)


def check(request: Request) -> None:
    """Raises `RequestRejectedError`."""
    headers, path = request.headers, request.url.path
    if not _ours(auth.host_name(headers)):
        why = f"It does not answer to the name {auth.host_name(headers)[:80]!r}."
        do = "Use its address, or set SLIMSCOPE_NAMES."
        raise RequestRejectedError(
            421, ForbiddenError("This is not the dashboard you want.", why, do)
        )
    if not _from_here(request):
        raise RequestRejectedError(
            403, ForbiddenError("Other sites may not use this dashboard.", "", ASK)
        )
    if _closed(path):
        raise RequestRejectedError(404, NotFoundError("There is nothing here."))
    if "transfer-encoding" in headers:
        raise RequestRejectedError(411, ForbiddenError("The request does not tell its length."))
    if int(headers.get("content-length") or 0) > MOST_BYTES:
        raise RequestRejectedError(
            413, ForbiddenError("The request is too large.", f"At most {MOST_BYTES} bytes.")
        )
    if shown := auth.bearer(headers):
        _check_token(shown, request)


def _check_token(shown: str, request: Request) -> None:
    try:
        auth.check_token(shown, request.client.host if request.client else "")
    except RateLimitError as error:
        raise RequestRejectedError(429, error) from error
    except ForbiddenError as error:
        raise RequestRejectedError(401, error) from error


def _ours(name: str) -> bool:
    """A numeric address cannot be pointed elsewhere, so it is always right. Other names count when
    they are set, or when people on other machines use names that we cannot know."""
    try:
        ipaddress.ip_address(name)
        return True
    except ValueError:
        names = settings().names
        anything = not names and not is_loopback(settings().host)
        return anything or name in ("localhost", *(n.lower() for n in names))


def _from_here(request: Request) -> bool:
    """Whether no other site is behind the request. Browsers say so in `Sec-Fetch-Site`, which no
    script can set, or in `Origin`; programs say nothing. Following a link is no harm."""
    headers = request.headers
    site = headers.get("sec-fetch-site")
    if site is not None:
        visit = request.method == "GET" and headers.get("sec-fetch-mode") == "navigate"
        return site in ("same-origin", "none") or visit
    origin = headers.get("origin")
    return origin is None or urlsplit(origin).netloc.lower() == headers.get("host", "").lower()


def _closed(path: str) -> bool:
    if path.startswith(GRADIO):
        return OPEN.fullmatch(path.removeprefix(GRADIO)) is None
    return path.startswith(CLOSED)


def _named(scope: Scope, answer: SecuredSend) -> Scope:
    """The request with a new guest's name in it, where guests may do something; the browser is told
    the name with the answer."""
    who = auth.current_user(Request(scope))
    if who.name != auth.NOBODY or not settings().guest_runs:
        return scope
    value = auth.new_guest()
    headers = MutableHeaders(raw=list(scope["headers"]))
    kept = headers.get("cookie")
    answer.cookie = auth.cookie_header("guest", value, headers)
    pair = f"{auth.cookie_name('guest')}={value}"
    headers["cookie"] = f"{kept}; {pair}" if kept else pair
    return {**scope, "headers": headers.raw}


class SecuredSend:
    """`send` that adds the headers; of a page, also the nonce of its scripts."""

    def __init__(self, send: Send, hashes: str) -> None:
        self.send, self.hashes, self.cookie = send, hashes, ""
        self.nonce = secrets.token_urlsafe(16)
        self._page: Message | None = None
        self._body = b""

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self._add_headers(message)
            if Headers(scope=message).get("content-type", "").startswith("text/html"):
                self._page = message
                return
        elif self._page is not None:
            self._body += message.get("body", b"")
            if not message.get("more_body"):
                await self._send_page(self._page)
            return
        await self.send(message)

    def _add_headers(self, message: Message) -> None:
        headers = MutableHeaders(scope=message)
        headers.update(HEADERS)
        policy = POLICY.format(nonce=self.nonce, hashes=self.hashes)
        headers["Content-Security-Policy"] = policy
        if self.cookie:
            headers.append("Set-Cookie", self.cookie)

    async def _send_page(self, start: Message) -> None:
        body = self._body.replace(b"<script", f'<script nonce="{self.nonce}"'.encode())
        headers = MutableHeaders(scope=start)
        if "content-length" in headers and headers["content-length"] != "0":
            headers["Content-Length"] = str(len(body))
        await self.send(start)
        await self.send({"type": "http.response.body", "body": body})

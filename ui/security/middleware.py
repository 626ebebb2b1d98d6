"""Security middleware: checks on every request, and security headers on every response.

It rejects

- unknown host names: a hostile site can point its domain at this machine,
- requests that another site makes a visitor's browser send,
- routes of Gradio that no page uses: files, uploads, URL fetching, direct calls,
- large bodies, and values that the database cannot store,
- wrong tokens.

A request is handled when its body is complete and `backend.queue.gate` gives it a slot.
"""

import base64
import hashlib
import ipaddress
import json
import math
import re
import secrets
import time
from contextlib import AsyncExitStack
from typing import Any

from starlette.concurrency import run_in_threadpool
from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from backend.errors import (
    ConfigError,
    ForbiddenError,
    NotFoundError,
    RateLimitError,
    SlimscopeError,
)
from backend.queue.actor import Actor, reject
from backend.queue.gate import request_slot
from backend.queue.permissions import ASK, READ_ONLY, require
from backend.settings import is_loopback, settings, space_host
from jobs.serving.keys import key_name
from jobs.serving.openai_format import error_body, error_headers
from ui.api_errors import API_PATH, error_response
from ui.security import auth

MAX_DEPTH = 64  # nested lists and objects in a body; pages send five
MAX_VALUES = 20_000  # per body; the largest that a page sends is a selection of runs
MAX_TOKEN_IDS = 300_000  # in a host's prompt for `/v1/completions`; guests' prompts are short
MAX_INTEGER = 2**63 - 1  # largest integer of the database
MAX_TEXTS = 20_000  # strings in a body, including names in objects
MAX_NAMES = 1000  # per object, because validation reports every unknown name
TOO_DEEP = f"Lists and objects may be nested {MAX_DEPTH} deep."
UNSTORABLE = re.compile("[\0\ud800-\udfff]")  # NUL and lone surrogates
MAX_BODY_BYTES = 1_000_000  # the largest that a page sends is the end of a log, 65 kB
OPENAI_PATH = "/v1/"
# the body is read only if the user may ask models
ASKING_PATHS = (OPENAI_PATH, "/slimscope/workbench/live")
COMPLETIONS_PATH = "/v1/completions"
LOGIN_PATH = "/slimscope/host"  # its body is a form, not JSON
SLOT = "slimscope.slot"  # request scope: the held slot; closed while waiting for other processes
GRADIO = "/gradio_api/"
OPEN_ROUTES = re.compile(
    r"(queue/(join|data)|run/predict|heartbeat/\w+|cancel|reset|app_id|startup-events)/?"
)
CLOSED_ROUTES = (
    *("/monitoring", "/login", "/logout", "/config", "/pwa_icon/"),
    *("/svelte/", "/custom_component/"),
)
MAX_NAME_BYTES = 255  # maximum length of a path segment; Gradio's lookup of longer file names fails
HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), microphone=(), geolocation=()",
}
# Gradio compiles functions from text (`js_on_load`, templates) and sets style attributes. All other
# resources come from this server, and inline scripts run only with the page's nonce.
POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-eval' 'nonce-{nonce}' {hashes}; "
    "style-src 'self' 'unsafe-inline'; img-src 'self' data: blob:; font-src 'self' data:; "
    "worker-src 'self' blob:; object-src 'none'; base-uri 'self'; form-action 'self'; "
    "frame-ancestors {framers}"
)
HUB = "https://huggingface.co"  # embeds a Space in a frame


def hash_of(script: str) -> str:
    """The Content-Security-Policy source that allows exactly this script."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'"


class SecurityMiddleware:
    """ASGI middleware. `scripts`: inline scripts that Gradio inserts into pages in the browser."""

    def __init__(self, app: ASGIApp, scripts: tuple[str, ...] = ()) -> None:
        self.app = app
        self.hashes = " ".join(map(hash_of, scripts))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        response, request = SecuredSend(send, self.hashes), Request(scope, receive)
        try:
            check(request)
            text = auth.bearer(request.headers)
            is_openai = request.url.path.startswith(OPENAI_PATH)
            if text and is_openai:
                request.scope[auth.KEY] = await run_in_threadpool(key_name, text)
            # OpenAI's client always sends a key, so any key is accepted if none is required
            is_required = settings().shared or not is_openai
            if text and is_required and not request.scope.get(auth.KEY):
                try:
                    auth.check_token(text, auth.peer(request))
                except RateLimitError as error:
                    raise RequestRejectedError(429, error) from error
                except ForbiddenError as error:
                    raise RequestRejectedError(401, error) from error
            await self._respond(request, response)
        except RequestRejectedError as rejection:
            client = request.client.host if request.client else ""
            reject(f"{client} {request.method} {request.url.path[:200]}".strip(), rejection.error)
            await rejection.response(scope["path"])(scope, receive, response)
        except ClientDisconnect:
            return  # no client waits for the response

    async def _respond(self, request: Request, response: "SecuredSend") -> None:
        """Read the body, wait for a slot, and call the application. The slot is released when the
        response begins, because a client may read the response at any speed."""
        user = auth.current_user(request)
        _require_asking(request, user)
        body = await request.body()
        async with AsyncExitStack() as stack:
            try:
                response.slot = await stack.enter_async_context(request_slot(user))
            except RateLimitError as error:
                raise RequestRejectedError(429, error) from error
            if body and request.url.path != LOGIN_PATH:
                is_host_prompt = request.url.path == COMPLETIONS_PATH and user.role == "host"
                max_values = MAX_TOKEN_IDS if is_host_prompt else MAX_VALUES
                if problem := await run_in_threadpool(json_problem, body, max_values):
                    raise RequestRejectedError(
                        422, ConfigError("The request was not accepted.", problem)
                    )
            scope = _with_guest_name(request.scope, user, response)
            scope = {**scope, SLOT: response.slot}
            body_message = iter([{"type": "http.request", "body": body, "more_body": False}])

            async def receive_again() -> Message:  # the body, then later messages of the client
                return next(body_message, None) or await request.receive()

            await self.app(scope, receive_again, response)


class RequestRejectedError(Exception):
    """A request that the middleware refuses, with its status and error."""

    def __init__(self, status: int, error: SlimscopeError) -> None:
        self.status, self.error = status, error

    def response(self, path: str) -> Response:
        """The response to a rejected request: JSON on API paths, plain text elsewhere."""
        if path.startswith(API_PATH):
            return error_response(self.error, self.status)
        if path.startswith(OPENAI_PATH):
            status, content = error_body(self.error, self.status)
            return JSONResponse(content, status, error_headers(self.error))
        return PlainTextResponse(str(self.error), self.status)


def check(request: Request) -> None:
    """Check the address, headers and size of a request; raise `RequestRejectedError` if it is
    refused."""
    headers = request.headers
    name = auth.host_name(headers)
    if not _allowed_host(name):
        raise RequestRejectedError(
            421,
            ForbiddenError(
                "Unknown host name.",
                f"The dashboard does not answer to {name[:80]!r}.",
                "Use its IP address, or add the name to SLIMSCOPE_NAMES.",
            ),
        )
    if not same_site(request):
        raise RequestRejectedError(403, ForbiddenError("Cross-site request rejected.", "", ASK))
    if "\0" in request.scope["path"] or b"%00" in request.scope["query_string"]:
        raise RequestRejectedError(400, ConfigError("The address contains the character NUL."))
    path = request.scope["path"]
    is_closed = path.startswith(CLOSED_ROUTES) or (
        path.startswith(GRADIO) and not OPEN_ROUTES.fullmatch(path, len(GRADIO))
    )
    if is_closed or any(len(name.encode()) > MAX_NAME_BYTES for name in path.split("/")):
        raise RequestRejectedError(404, NotFoundError("This address does not exist."))
    if "transfer-encoding" in headers:
        raise RequestRejectedError(411, ForbiddenError("The request has no Content-Length."))
    if int(headers.get("content-length") or 0) > MAX_BODY_BYTES:
        raise RequestRejectedError(
            413, ForbiddenError("The request is too large.", f"At most {MAX_BODY_BYTES} bytes.")
        )


def _require_asking(request: Request, user: Actor) -> None:
    """Refuse a request for an answer from a user who may not ask, before its body is read."""
    if request.method != "POST" or not request.url.path.startswith(ASKING_PATHS):
        return
    may_ask = user.role == "host" or settings().guest_answers
    try:
        require(user, "ask for this answer", "" if may_ask else READ_ONLY)
    except ForbiddenError as error:
        raise RequestRejectedError(403, error) from error


def _allowed_host(name: str) -> bool:
    """Return True if requests to this host name are accepted.

    IP addresses always are: they cannot be redirected to another machine. Names must be in the
    settings, unless none is set and other machines can reach the dashboard under unknown names.

    Starlette's `TrustedHostMiddleware` cannot express "any IP address", and responds without the
    log entry and the headers of this module (400, plain text)."""
    try:
        ipaddress.ip_address(name)
        return True
    except ValueError:
        names = settings().names
        accepts_any_name = not names and not is_loopback(settings().host)
        return accepts_any_name or name in ("localhost", *map(str.lower, names))


def _with_guest_name(scope: Scope, user: Actor, response: "SecuredSend") -> Scope:
    """Add a cookie to the request of a new guest where guests need names; the response sets it."""
    if user.name != auth.UNNAMED_GUEST or not settings().names_guests:
        return scope
    value = auth.new_guest(user.client)
    headers = MutableHeaders(raw=list(scope["headers"]))
    cookies = headers.get("cookie")
    response.cookie = auth.cookie_header("guest", value, headers)
    pair = f"{auth.cookie_name('guest')}={value}"
    headers["cookie"] = f"{cookies}; {pair}" if cookies else pair
    state = {**scope.get("state", {}), auth.NEW_GUEST: True}
    return {**scope, "headers": headers.raw, "state": state}


class RequestTimes:
    """Number of responses, and total seconds until their first byte."""

    number, seconds = 0, 0.0

    def add(self, seconds: float) -> None:
        self.number, self.seconds = self.number + 1, self.seconds + seconds


TIMES = RequestTimes()


class SecuredSend:
    """ASGI `send` that adds the security headers, and the nonce to the scripts of a page."""

    def __init__(self, send: Send, hashes: str) -> None:
        self.send, self.hashes, self.cookie = send, hashes, ""
        self.nonce = secrets.token_urlsafe(16)
        self.slot, self._start = AsyncExitStack(), time.monotonic()
        self._page: Message | None = None
        self._body = b""

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            await self.slot.aclose()
            TIMES.add(time.monotonic() - self._start)
            headers = MutableHeaders(scope=message)
            headers.update(HEADERS)
            space = space_host()
            framers = f"{HUB} https://{space} 'self'" if space else "'self'"
            if not space:
                headers["X-Frame-Options"] = "SAMEORIGIN"  # stories embed pages
            policy = POLICY.format(nonce=self.nonce, hashes=self.hashes, framers=framers)
            headers["Content-Security-Policy"] = policy
            if self.cookie:
                headers.append("Set-Cookie", self.cookie)
            if Headers(scope=message).get("content-type", "").startswith("text/html"):
                self._page = message
                return
        elif self._page is not None:
            self._body += message.get("body", b"")
            if message.get("more_body"):
                return
            body = self._body.replace(b"<script", b'<script nonce="%b"' % self.nonce.encode())
            headers = MutableHeaders(scope=self._page)
            if "content-length" in headers and headers["content-length"] != "0":
                headers["Content-Length"] = str(len(body))
            await self.send(self._page)
            message = {"type": "http.response.body", "body": body}
        await self.send(message)


def same_site(request: Request) -> bool:
    """Return True unless another site caused the request. Browsers name the site in
    `Sec-Fetch-Site`, which scripts cannot set, or in `Origin`; programs send neither. Following a
    link is allowed."""
    headers = request.headers
    site = headers.get("sec-fetch-site")
    if site is not None:
        is_link = request.method == "GET" and headers.get("sec-fetch-mode") == "navigate"
        return site in ("same-origin", "none") or is_link
    origin = headers.get("origin")
    return origin is None or origin.partition("://")[2].lower() == headers.get("host", "").lower()


# JSON that no page sends and that could not be stored, refused for all users ----------------------


def json_problem(body: bytes, max_values: int = MAX_VALUES) -> str:
    """The reason why a JSON body is refused; "" if it is accepted. Counts texts and values, at most
    `max_values`, before parsing."""
    # an escaped quote does not end a text, and commas inside texts separate no values
    unescaped = body.replace(rb"\\", b"").replace(rb"\"", b"")
    if unescaped.count(b'"') > 2 * MAX_TEXTS:
        return f"It contains more than {MAX_TEXTS:,} texts."
    if b"".join(unescaped.split(b'"')[::2]).count(b",") >= max_values:
        return f"It contains more than {max_values:,} values."
    try:
        level = [json.loads(body.decode())]
    except RecursionError:
        return TOO_DEEP
    except ValueError as error:
        return f"It is not valid JSON: {error}."
    for _ in range(MAX_DEPTH):
        if problem := next(filter(None, map(_leaf_problem, level)), ""):
            return problem
        parents, level = level, list[Any]()
        for value in parents:
            if isinstance(value, dict):
                if len(value) > MAX_NAMES:
                    return f"One of its objects has more than {MAX_NAMES:,} names."
                level += [*value, *value.values()]
            elif isinstance(value, list):
                level += value
    return TOO_DEEP if level else ""


def _leaf_problem(value: Any) -> str:
    if isinstance(value, str) and UNSTORABLE.search(value):
        return "It contains a character that cannot be stored, such as NUL."
    if isinstance(value, int) and abs(value) > MAX_INTEGER:
        return "It contains a number that is too large."
    if isinstance(value, float) and not math.isfinite(value):
        return "It contains a number that is not finite."
    return ""

"""Checks on every request before a page or the API sees it, and headers of every response.

Rejected are: unknown host names (a hostile site can point its own name at this machine), requests
that other sites make a visitor's browser send, routes of Gradio that no page of ours uses (files,
uploads, URL fetching, direct calls), large bodies, what cannot be stored, and wrong tokens. A
request is worked on once it is whole, in its turn (see `backend.queue.gate`).
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
from backend.queue.gate import place_of_request
from backend.queue.permissions import ASK, READ_ONLY, require
from backend.settings import is_loopback, settings, space_host
from jobs.serving.keys import key_name
from jobs.serving.openai_format import error_body, error_headers
from ui.api_errors import API_PATH, error_response
from ui.security import auth

MAX_DEPTH = 64  # of lists and objects inside each other; the pages send five
MAX_VALUES = 20_000  # the largest a page sends is a selection of runs
MAX_TOKEN_IDS = 300_000  # of a prompt of a host for `/v1/completions`; guests may send few letters
MAX_INTEGER = 2**63 - 1  # integer a database can hold
MAX_TEXTS = 20_000  # names of objects included
MAX_NAMES = 1000  # of one object: a validator says something about each that it does not know
TOO_DEEP = f"Lists and objects may be nested {MAX_DEPTH} deep."
UNSTORABLE = re.compile("[\0\ud800-\udfff]")  # NUL, and half of a pair of surrogates
MAX_BODY_BYTES = 1_000_000  # the largest a page sends is the end of a log, 65 kB
OPENAI_PATH = "/v1/"
ASKING_PATHS = (OPENAI_PATH, "/slimscope/workbench/live")  # read for those who may ask alone
COMPLETIONS_PATH = "/v1/completions"
LOGIN_PATH = "/slimscope/host"  # takes a form
TURN = "slimscope.turn"  # in a scope; whoever waits for another process closes it
GRADIO = "/gradio_api/"
OPEN_ROUTES = re.compile(
    r"(queue/(join|data)|run/predict|heartbeat/\w+|cancel|reset|app_id|startup-events)/?"
)
CLOSED_ROUTES = (
    *("/monitoring", "/login", "/logout", "/config", "/pwa_icon"),
    *("/svelte/", "/custom_component/"),
)
MAX_NAME_BYTES = 255  # of a file; Gradio asks the file system about longer ones, which fails
HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), microphone=(), geolocation=()",
}
# Gradio makes functions of text (`js_on_load`, templates) and sets style attributes; everything
# else a page loads is served by us. Inline scripts run only with the page's nonce.
POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-eval' 'nonce-{nonce}' {hashes}; "
    "style-src 'self' 'unsafe-inline'; img-src 'self' data: blob:; font-src 'self' data:; "
    "worker-src 'self' blob:; object-src 'none'; base-uri 'self'; form-action 'self'; "
    "frame-ancestors {framers}"
)
HUB = "https://huggingface.co"  # shows a Space in a frame


def hash_of(script: str) -> str:
    """A Content-Security-Policy source that allows exactly this script."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'"


class SecurityMiddleware:
    """ASGI middleware; `scripts` are inline scripts that Gradio puts into pages in the browser."""

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
            # raises `RequestRejectedError` for a token that is not the host's, nor a key of the API
            text = auth.bearer(request.headers)
            is_openai = request.url.path.startswith(OPENAI_PATH)
            if text and is_openai:
                request.scope[auth.KEY] = await run_in_threadpool(key_name, text)
            # OpenAI's client always sends a key: where none is needed, any will do.
            is_needed = settings().shared or not is_openai
            if text and is_needed and not request.scope.get(auth.KEY):
                try:
                    auth.check_token(text, auth.peer(request))
                except RateLimitError as error:
                    raise RequestRejectedError(429, error) from error
                except ForbiddenError as error:
                    raise RequestRejectedError(401, error) from error
            await self._answer(request, response)
        except RequestRejectedError as rejection:
            client = request.client.host if request.client else ""
            reject(f"{client} {request.method} {request.url.path[:200]}".strip(), rejection.error)
            await rejection.response(scope["path"])(scope, receive, response)
        except ClientDisconnect:
            return  # nobody waits for the answer

    async def _answer(self, request: Request, response: "SecuredSend") -> None:
        """Lets the application answer when the request is whole and its turn has come. The turn
        ends when the answer begins, as that may take as long as its client likes."""
        user = auth.current_user(request)
        _require_asking(request, user)
        body = await request.body()
        async with AsyncExitStack() as place:
            try:
                response.turn = await place.enter_async_context(place_of_request(user))
            except RateLimitError as error:
                raise RequestRejectedError(429, error) from error
            if body and request.url.path != LOGIN_PATH:
                is_prompt = request.url.path == COMPLETIONS_PATH and user.role == "host"
                most = MAX_TOKEN_IDS if is_prompt else MAX_VALUES
                if problem := await run_in_threadpool(json_problem, body, most):
                    raise RequestRejectedError(
                        422, ConfigError("The request was not accepted.", problem)
                    )
            scope = _with_guest_name(request.scope, user, response)
            scope = {**scope, TURN: response.turn}
            read = iter([{"type": "http.request", "body": body, "more_body": False}])

            async def received() -> Message:  # what was read already, then what comes after it
                return next(read, None) or await request.receive()

            await self.app(scope, received, response)


class RequestRejectedError(Exception):
    """A request that reaches no page."""

    def __init__(self, status: int, error: SlimscopeError) -> None:
        self.status, self.error = status, error

    def response(self, path: str) -> Response:
        """JSON for programs, a sentence for people."""
        if path.startswith(API_PATH):
            return error_response(self.error, self.status)
        if path.startswith(OPENAI_PATH):
            status, content = error_body(self.error, self.status)
            return JSONResponse(content, status, error_headers(self.error))
        return PlainTextResponse(str(self.error), self.status)


def check(request: Request) -> None:
    """Raises `RequestRejectedError`."""
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
        raise RequestRejectedError(400, ConfigError("The address holds the character NUL."))
    path = request.scope["path"]
    is_closed = path.startswith(CLOSED_ROUTES) or (
        path.startswith(GRADIO) and not OPEN_ROUTES.fullmatch(path, len(GRADIO))
    )
    if is_closed or any(len(name.encode()) > MAX_NAME_BYTES for name in path.split("/")):
        raise RequestRejectedError(404, NotFoundError("There is nothing at this address."))
    if "transfer-encoding" in headers:
        raise RequestRejectedError(411, ForbiddenError("The request has no Content-Length."))
    if int(headers.get("content-length") or 0) > MAX_BODY_BYTES:
        raise RequestRejectedError(
            413, ForbiddenError("The request is too large.", f"At most {MAX_BODY_BYTES} bytes.")
        )


def _require_asking(request: Request, user: Actor) -> None:
    """Refuses a question of whoever may not ask, before its body is read."""
    if request.method != "POST" or not request.url.path.startswith(ASKING_PATHS):
        return
    may_ask = user.role == "host" or settings().guest_answers
    try:
        require(user, "ask for this answer", "" if may_ask else READ_ONLY)
    except ForbiddenError as error:
        raise RequestRejectedError(403, error) from error


def _allowed_host(name: str) -> bool:
    """Whether requests to this host name are answered. An IP address cannot be pointed elsewhere,
    so it always is. Other names must be set, unless people on other machines use names that we
    cannot know.

    Not Starlette's `TrustedHostMiddleware`: its patterns cannot say "any IP address", and it
    answers before the log and the headers of this module (400, plain text)."""
    try:
        ipaddress.ip_address(name)
        return True
    except ValueError:
        names = settings().names
        any_name = not names and not is_loopback(settings().host)
        return any_name or name in ("localhost", *(n.lower() for n in names))


def _with_guest_name(scope: Scope, user: Actor, response: "SecuredSend") -> Scope:
    """The request with a new guest's cookie where guests may do something; the response sets it."""
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
    """How many requests were answered, and the seconds until their answers began."""

    number, seconds = 0, 0.0

    def add(self, seconds: float) -> None:
        self.number, self.seconds = self.number + 1, self.seconds + seconds


TIMES = RequestTimes()


class SecuredSend:
    """`send` that adds the headers and, to a page, the nonce of its scripts."""

    def __init__(self, send: Send, hashes: str) -> None:
        self.send, self.hashes, self.cookie = send, hashes, ""
        self.nonce = secrets.token_urlsafe(16)
        self.turn, self._began = AsyncExitStack(), time.monotonic()
        self._page: Message | None = None
        self._body = b""

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            await self.turn.aclose()
            TIMES.add(time.monotonic() - self._began)
            headers = MutableHeaders(scope=message)
            headers.update(HEADERS)
            space = space_host()
            framers = f"{HUB} https://{space} 'self'" if space else "'self'"
            if not space:
                headers["X-Frame-Options"] = "SAMEORIGIN"  # the presentation frames our pages
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
    """Whether no other site caused the request. Browsers say so in `Sec-Fetch-Site`, which no
    script can set, or in `Origin`; programs send neither. Following a link is allowed."""
    headers = request.headers
    site = headers.get("sec-fetch-site")
    if site is not None:
        visit = request.method == "GET" and headers.get("sec-fetch-mode") == "navigate"
        return site in ("same-origin", "none") or visit
    origin = headers.get("origin")
    return origin is None or origin.partition("://")[2].lower() == headers.get("host", "").lower()


# what a body must not hold, whoever sends it: nothing of ours sends or could store it ------------


def json_problem(body: bytes, values: int = MAX_VALUES) -> str:
    """Why a body of at most so many `values` is refused; "" if it is fine."""
    # what is escaped does not end a text, and commas inside of texts do not count
    plain = body.replace(rb"\\", b"").replace(rb"\"", b"")
    if plain.count(b'"') > 2 * MAX_TEXTS:
        return f"It holds more than {MAX_TEXTS:,} texts."
    if b"".join(plain.split(b'"')[::2]).count(b",") >= values:
        return f"It holds more than {values:,} values."
    try:
        inside = [json.loads(body.decode())]
    except RecursionError:
        return TOO_DEEP
    except ValueError as error:
        return f"It is no valid JSON: {error}."
    for _ in range(MAX_DEPTH):
        if problem := next(filter(None, map(_leaf_problem, inside)), ""):
            return problem
        outside, inside = inside, list[Any]()
        for value in outside:
            if isinstance(value, dict):
                if len(value) > MAX_NAMES:
                    return f"An object of it has more than {MAX_NAMES:,} names."
                inside += [*value, *value.values()]
            elif isinstance(value, list):
                inside += value
    return TOO_DEEP if inside else ""


def _leaf_problem(value: Any) -> str:
    if isinstance(value, str) and UNSTORABLE.search(value):
        return "It holds a character that cannot be stored, such as NUL."
    if isinstance(value, int) and abs(value) > MAX_INTEGER:
        return "It holds a number that is too large."
    if isinstance(value, float) and not math.isfinite(value):
        return "It holds a number that is not finite."
    return ""

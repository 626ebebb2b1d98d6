"""Who sends a request. `current_user` is the only place that decides it;
`backend.queue.permissions` says what they may do.

A dashboard on a loopback address belongs to whoever uses this machine: they are the host. Where
other people can reach it (another address, or a token was set), the host is whoever has the token:
as `Authorization: Bearer TOKEN`, or by the cookie of a session that they start with it on the page
`/slimscope/host`. The link to that page carries the token behind a "#", which browsers send to
nobody, so the token is never logged. Everybody else is a guest; where guests may add runs, each
gets a name in a signed cookie. For `/v1` alone, an API key also makes a host (`jobs.serving.keys`).
"""

import hashlib
import hmac
import re
import secrets
import socket
import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from http.cookies import CookieError, SimpleCookie
from urllib.parse import parse_qs

import gradio as gr
from itsdangerous import BadSignature, Signer
from starlette.requests import HTTPConnection, Request
from starlette.responses import HTMLResponse, RedirectResponse, Response

from backend.errors import ForbiddenError, RateLimitError, SlimscopeError
from backend.queue import gate
from backend.queue.actor import Actor, guest_name, reject
from backend.queue.gate import client_network
from backend.queue.permissions import ASK
from backend.settings import is_loopback, settings, space_host
from ui.templates import render

DAY = 86_400.0  # seconds
MAX_IDLE = 7 * DAY  # an open page asks every 10 s
MAX_AGE = 30 * DAY


@dataclass
class HostSession:
    """One login."""

    # from where it came: browsers send a cookie to every port of a machine, and who listens there
    # must not be able to use it from elsewhere
    origin: str
    started: float  # seconds of a monotonic clock
    used: float

    @property
    def expired(self) -> bool:
        now = time.monotonic()
        return now - self.used > MAX_IDLE or now - self.started > MAX_AGE


class SessionStore:
    """The sessions of this process, by their random ids."""

    def __init__(self) -> None:
        self._sessions: dict[str, HostSession] = {}

    def start(self, origin: str) -> str:
        """The id of a new session; expired ones are forgotten."""
        for old in [key for key, session in self._sessions.items() if session.expired]:
            self.end(old)
        session_id, now = secrets.token_urlsafe(32), time.monotonic()
        self._sessions[session_id] = HostSession(origin, now, now)
        return session_id

    def use(self, session_id: str, origin: str) -> bool:
        """Whether the session is valid for requests from there; keeps it from becoming idle."""
        session = self._sessions.get(session_id)
        if session is None or session.expired or session.origin != origin:
            return False
        session.used = time.monotonic()
        return True

    def end(self, session_id: str) -> None:
        self._sessions.pop(session_id, None)


UNNAMED_GUEST = "guest"
MAX_FORM_BYTES = 4096  # bytes of it that are read: anybody may send one, and reading takes time
PROXY_HEADERS = re.compile(
    "forwarded|via|x-forwarded.*|x-original-.*|x-real-.*|real-ip|(x-)?(true-|cluster-)?client-ip|"
    "x-proxy.*|proxy-.*|x-nginx-.*|x-envoy-.*|x-remote-.*|remote-.*|x-arr-.*|x-azure-.*|x-amzn-.*|"
    "x-appengine-.*|cf-.*|cdn-.*|cloudfront-.*|fastly-.*|fly-.*|akamai-.*|tailscale-.*|x-vercel-.*"
)
NEW_GUEST = "new_guest"  # in the state of a request whose cookie was made for it
KEY = "slimscope.key"  # in a scope: the name of the API key that was shown
sessions = SessionStore()


def current_user(request: gr.Request | HTTPConnection | None) -> Actor:
    """The sender of a request. Without a token only a request from this machine is the host's: to a
    loopback name (a hostile site can point its own name at 127.0.0.1), and through no proxy."""
    if request is None or request.client is None:
        return Actor(UNNAMED_GUEST)
    headers = {key.lower(): value for key, value in dict(request.headers).items()}
    client = request.client.host
    forwarded = any(map(PROXY_HEADERS.fullmatch, headers))
    is_local = is_loopback(client) and is_loopback(host_name(headers)) and not forwarded
    if not settings().shared and is_local:
        return Actor("local", "host", client)
    if _is_token(bearer(headers)) or sessions.use(_read_cookie(headers, "host"), _origin(request)):
        return Actor("host", "host", client)
    if isinstance(request, HTTPConnection) and (key := request.scope.get(KEY)):
        return Actor(f"key {key}", "host", client)
    name = _read_cookie(headers, "guest") or UNNAMED_GUEST
    return Actor(
        name,
        "guest",
        client,
        is_new=bool(getattr(getattr(request, "state", None), NEW_GUEST, False)),
    )


def peer(request: gr.Request | HTTPConnection) -> str:
    """The other end of the connection. `request.client` is whom the header `X-Forwarded-For` names,
    where the connection is from this machine; that may be a proxy, or somebody who invents it."""
    connection = str(getattr(getattr(request, "state", None), "peer", ""))
    return connection or (request.client.host if request.client else "")


def _origin(request: gr.Request | HTTPConnection) -> str:
    """From where a session is used: the client, and the proxy before it."""
    client = request.client.host if request.client else ""
    return f"{client_network(client)} {client_network(peer(request))}"


def host_name(headers: Mapping[str, str]) -> str:
    """The host name a request was sent to, without its port."""
    return re.sub(r":\d+$", "", headers.get("host", "")).strip("[]").lower()


# the token ----------------------------------------------------------------------------------------


@lru_cache
def token() -> str:
    """The host's token: as set, or random for this process."""
    return settings().host_token.get_secret_value() or secrets.token_urlsafe(24)


def host_link(port: int) -> str:
    """Address at which the host of a shared dashboard logs in. Printed once, to whoever started the
    dashboard; a token they set themselves is not repeated."""
    address = settings().host
    name = socket.gethostname() if address in ("", "0.0.0.0", "::") else address
    name = f"[{name}]" if ":" in name else name
    known = bool(settings().host_token.get_secret_value())
    site = f"https://{space_host()}" if space_host() else f"http://{name}:{port}"
    return f"{site}/slimscope/host" + ("" if known else f"#{token()}")


def bearer(headers: Mapping[str, str]) -> str:
    """The token in the `Authorization` header, "" without one."""
    scheme, _, value = headers.get("authorization", "").partition(" ")
    return value.strip() if scheme.lower() == "bearer" else ""


def _is_token(text: str) -> bool:
    """Compares in a time that does not depend on where they differ."""
    return hmac.compare_digest(text.encode(), token().encode())


# cookies ------------------------------------------------------------------------------------------


def cookie_name(role: str) -> str:
    """Browsers send a cookie to all ports, so two dashboards on one machine need two names."""
    return f"slimscope-{role}-{settings().port}"


def _signer(role: str) -> Signer:
    """Signs the cookies of a role. A new token makes the old ones invalid."""
    return Signer(token(), f"slimscope-{role}", key_derivation="hmac", digest_method=hashlib.sha256)


def _read_cookie(headers: Mapping[str, str], role: str) -> str:
    """The signed value of a role's cookie, "" unless this dashboard signed it."""
    try:
        cookie = SimpleCookie(headers.get("cookie", "")).get(cookie_name(role))
        return _signer(role).unsign(cookie.value).decode() if cookie else ""
    except (CookieError, BadSignature):
        return ""


def signed(role: str, value: str) -> str:
    """A cookie's value with its signature."""
    return _signer(role).sign(value).decode()


def new_guest(client: str) -> str:
    """The cookie of a new guest at this address. The name tells guests of one address from others,
    but not the address."""
    network = hmac.new(token().encode(), client_network(client).encode(), hashlib.sha256)
    return signed("guest", guest_name(network.hexdigest()[:6], secrets.token_hex(4)))


def cookie_header(role: str, value: str, headers: Mapping[str, str]) -> str:
    """A `Set-Cookie` that no script can read and no other site can make a browser send. The cookie
    lasts until the browser is closed; an empty value deletes it."""
    secure = "; Secure" if headers.get("x-forwarded-proto") == "https" else ""
    age = "" if value else "; Max-Age=0"
    return f"{cookie_name(role)}={value}; HttpOnly; SameSite=Strict; Path=/{age}{secure}"


# logging in and out -------------------------------------------------------------------------------


async def host_page(request: Request) -> Response:
    """GET shows the form; POST exchanges the token for the cookie of a new session."""
    if request.method != "POST":
        return _form()
    form = (await request.body())[:MAX_FORM_BYTES].decode("utf-8", "replace")
    text = parse_qs(form).get("token", [""])[0]
    try:
        check_token(text, peer(request))
    except SlimscopeError as error:
        reject(request.client.host if request.client else "", error)
        return _form(error, 429 if isinstance(error, RateLimitError) else 403)
    sessions.end(_read_cookie(request.headers, "host"))
    return _to_overview(request, signed("host", sessions.start(_origin(request))))


async def leave(request: Request) -> Response:
    """POST ends the host's session, and deletes its cookie."""
    sessions.end(_read_cookie(request.headers, "host"))
    return _to_overview(request, "")


def _to_overview(request: Request, cookie: str) -> Response:
    response = RedirectResponse("../", 303)
    response.headers["set-cookie"] = cookie_header("host", cookie, request.headers)
    return response


def _form(error: SlimscopeError | None = None, status: int = 200) -> HTMLResponse:
    return HTMLResponse(render("security/host.html", error=error), status)


def check_token(text: str, sender: str) -> None:
    """Raises `ForbiddenError` unless this is the token, and `RateLimitError` after ten wrong ones
    within a minute.

    Args:
        sender: the `peer`, which nobody can invent. All visitors behind a proxy are one, but none
            of them locks out the others: the right token is always accepted.
    """
    if not _is_token(text.strip()):
        gate.logins.spend_by({client_network(sender): gate.LOGINS_PER_MINUTE})
        raise ForbiddenError("Login failed.", "The token is wrong.", ASK)

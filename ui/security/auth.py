"""Authentication: the user behind a request, host sessions and signed cookies.

`current_user` alone decides who sent a request; `backend.queue.permissions` defines what the user
may do.

- A dashboard on a loopback address belongs to the user of this machine, who is the host.
- A shared dashboard (on another address, or with a token set) recognizes the host by the token:
  sent as `Authorization: Bearer TOKEN`, or exchanged for the cookie of a session on the page
  `/slimscope/host`. The link to that page has the token after a "#". Browsers never send that
  part, so the token is never logged.
- For `/v1` only, an API key also identifies a host (`jobs.serving.keys`).
- All other users are guests. Where guests may add runs or request answers, each gets a name in a
  signed cookie.
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

DAY_S = 86_400.0
MAX_IDLE_S = 7 * DAY_S  # an open page sends a request every 10 s
MAX_AGE_S = 30 * DAY_S


@dataclass
class HostSession:
    """A host session, from login to logout."""

    # Networks of the client and its proxy. Browsers send a cookie to every port of a machine, and a
    # program that listens on another port must not be able to use the cookie from elsewhere.
    origin: str
    started_at: float  # monotonic seconds
    used_at: float

    @property
    def expired(self) -> bool:
        now = time.monotonic()
        return now - self.used_at > MAX_IDLE_S or now - self.started_at > MAX_AGE_S


class SessionStore:
    """Host sessions of this process by random id."""

    def __init__(self) -> None:
        self._sessions: dict[str, HostSession] = {}

    def start(self, origin: str) -> str:
        """Start a session and return its id. Expired sessions are deleted."""
        for expired_id in [key for key, session in self._sessions.items() if session.expired]:
            self.end(expired_id)
        session_id, now = secrets.token_urlsafe(32), time.monotonic()
        self._sessions[session_id] = HostSession(origin, now, now)
        return session_id

    def use(self, session_id: str, origin: str) -> bool:
        """Return True if the session is valid for requests from `origin`; reset its idle time."""
        session = self._sessions.get(session_id)
        if session is None or session.expired or session.origin != origin:
            return False
        session.used_at = time.monotonic()
        return True

    def end(self, session_id: str) -> None:
        self._sessions.pop(session_id, None)


UNNAMED_GUEST = "guest"
MAX_FORM_BYTES = 4096  # bytes of a login form that are parsed: anyone may send one
PROXY_HEADERS = re.compile(
    "forwarded|via|x-forwarded.*|x-original-.*|x-real-.*|real-ip|(x-)?(true-|cluster-)?client-ip|"
    "x-proxy.*|proxy-.*|x-nginx-.*|x-envoy-.*|x-remote-.*|remote-.*|x-arr-.*|x-azure-.*|x-amzn-.*|"
    "x-appengine-.*|cf-.*|cdn-.*|cloudfront-.*|fastly-.*|fly-.*|akamai-.*|tailscale-.*|x-vercel-.*"
)
NEW_GUEST = "new_guest"  # request state: the guest's cookie was created for this request
KEY = "slimscope.key"  # request scope: name of the API key in the request
sessions = SessionStore()


def current_user(request: gr.Request | HTTPConnection | None) -> Actor:
    """Identify the user behind a request.

    Without a token, only a request from this machine is the host's. It has to name a loopback
    address (a hostile site can point its domain at 127.0.0.1) and must not come through a proxy."""
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
    """The network address at the other end of the connection.

    For a connection from this machine, `request.client` is the address in the `X-Forwarded-For`
    header instead, which a proxy sets, or anyone who forges it."""
    connection = str(getattr(getattr(request, "state", None), "peer", ""))
    return connection or (request.client.host if request.client else "")


def _origin(request: gr.Request | HTTPConnection) -> str:
    """Networks of the client and of the proxy in front of it."""
    client = request.client.host if request.client else ""
    return f"{client_network(client)} {client_network(peer(request))}"


def host_name(headers: Mapping[str, str]) -> str:
    """The host name in a request's `Host` header, without the port."""
    return re.sub(r":\d+$", "", headers.get("host", "")).strip("[]").lower()


# the token ----------------------------------------------------------------------------------------


@lru_cache
def token() -> str:
    """The host's token: from the settings, or random for this process."""
    return settings().host_token.get_secret_value() or secrets.token_urlsafe(24)


def host_link(port: int) -> str:
    """The login link for the host of a shared dashboard, printed once at startup. It contains the
    token unless the token comes from the settings."""
    address = settings().host
    name = socket.gethostname() if address in ("", "0.0.0.0", "::") else address
    name = f"[{name}]" if ":" in name else name
    is_token_set = bool(settings().host_token.get_secret_value())
    site = f"https://{space_host()}" if space_host() else f"http://{name}:{port}"
    return f"{site}/slimscope/host" + ("" if is_token_set else f"#{token()}")


def bearer(headers: Mapping[str, str]) -> str:
    """The token in the `Authorization` header; "" if there is none."""
    scheme, _, value = headers.get("authorization", "").partition(" ")
    return value.strip() if scheme.lower() == "bearer" else ""


def _is_token(text: str) -> bool:
    """Compare with the token in a time that does not depend on where the texts differ."""
    return hmac.compare_digest(text.encode(), token().encode())


# cookies ------------------------------------------------------------------------------------------


def cookie_name(role: str) -> str:
    """The name of a role's cookie. It contains the port: browsers send a cookie to all ports of a
    machine, so two dashboards need two names."""
    return f"slimscope-{role}-{settings().port}"


def _signer(role: str) -> Signer:
    """The signer of a role's cookies. A new token invalidates existing cookies."""
    return Signer(token(), f"slimscope-{role}", key_derivation="hmac", digest_method=hashlib.sha256)


def _read_cookie(headers: Mapping[str, str], role: str) -> str:
    """The value of a role's cookie; "" unless this dashboard signed it."""
    try:
        cookie = SimpleCookie(headers.get("cookie", "")).get(cookie_name(role))
        return _signer(role).unsign(cookie.value).decode() if cookie else ""
    except (CookieError, BadSignature):
        return ""


def signed(role: str, value: str) -> str:
    """Return the value of a role's cookie with its signature."""
    return _signer(role).sign(value).decode()


def new_guest(client: str) -> str:
    """Create a name for a guest at this address, and return it as the value of the guest's cookie.
    Names of guests at one address share a prefix that does not reveal the address."""
    network = hmac.new(token().encode(), client_network(client).encode(), hashlib.sha256)
    return signed("guest", guest_name(network.hexdigest()[:6], secrets.token_hex(4)))


def cookie_header(role: str, value: str, headers: Mapping[str, str]) -> str:
    """The `Set-Cookie` header of a role's cookie. Scripts cannot read the cookie, and requests that
    other sites cause do not carry it. It lasts until the browser is closed; an empty value deletes
    it."""
    secure = "; Secure" if headers.get("x-forwarded-proto") == "https" else ""
    age = "" if value else "; Max-Age=0"
    return f"{cookie_name(role)}={value}; HttpOnly; SameSite=Strict; Path=/{age}{secure}"


# login and logout ---------------------------------------------------------------------------------


async def host_page(request: Request) -> Response:
    """Serve the login page: GET shows the form, POST exchanges the token for the cookie of a new
    session."""
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
    """End the host's session and delete its cookie (POST)."""
    sessions.end(_read_cookie(request.headers, "host"))
    return _to_overview(request, "")


def _to_overview(request: Request, cookie: str) -> Response:
    response = RedirectResponse("../", 303)
    response.headers["set-cookie"] = cookie_header("host", cookie, request.headers)
    return response


def _form(error: SlimscopeError | None = None, status: int = 200) -> HTMLResponse:
    return HTMLResponse(render("security/host.html", error=error), status)


def check_token(text: str, sender: str) -> None:
    """Check a login attempt.

    Args:
        text: token to check.
        sender: the `peer` of the request, which cannot be forged. All visitors behind a proxy share
            one peer. They cannot lock each other out, because the correct token is always accepted.

    Raises:
        ForbiddenError: the token is wrong.
        RateLimitError: too many wrong tokens from this sender within a minute.
    """
    if not _is_token(text.strip()):
        gate.logins.spend_by({client_network(sender): gate.LOGINS_PER_MINUTE})
        raise ForbiddenError("Login failed.", "The token is wrong.", ASK)

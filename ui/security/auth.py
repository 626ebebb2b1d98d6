"""Who asks. `actor` is the only place that decides it; what he may do stands in
`backend.queue.roles`.

A dashboard that listens on a loopback address belongs to who sits at the machine: he is the host.
Where other people can reach it (another address, or a token was set), the host is who shows the
token: as `Authorization: Bearer TOKEN`, or by a cookie that he gets for it on the page `/slimscope/
host`. The link to that page carries the token behind a "#", which browsers send to nobody, so it
stands in no log and no history. Everybody else is a guest; where guests may add runs, each gets a
name in a signed cookie.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
import socket
from collections.abc import Mapping
from functools import lru_cache
from http.cookies import CookieError, SimpleCookie
from urllib.parse import parse_qs

import gradio as gr
from starlette.requests import HTTPConnection, Request
from starlette.responses import HTMLResponse, RedirectResponse, Response

from backend.errors import ForbiddenError, RateLimitError, SlimscopeError
from backend.queue.roles import ASK, GUEST, Actor, RateLimiter, reject
from backend.settings import is_loopback, settings
from ui.widgets.html import problem

NOBODY = "guest"
TRIES_PER_MINUTE = 10
WRONG = "This is not the token of this dashboard."
tries = RateLimiter()


def current_user(request: gr.Request | HTTPConnection | None) -> Actor:
    """Who asks. By address alone the host is only who asks from this machine, for a loopback name
    (a hostile site could point its own name at 127.0.0.1), and through no proxy."""
    if request is None or request.client is None:
        return Actor(NOBODY)
    headers = {key.lower(): value for key, value in dict(request.headers).items()}
    client = request.client.host
    if not settings().shared and _local(client, headers):
        return Actor("local", "host", client)
    if _shows_token(headers):
        return Actor("host", "host", client)
    return Actor(_guest(headers) or NOBODY, "guest", client)


def _local(client: str, headers: Mapping[str, str]) -> bool:
    passed_on = any(name == "forwarded" or name.startswith("x-forwarded-") for name in headers)
    return is_loopback(client) and is_loopback(host_name(headers)) and not passed_on


def host_name(headers: Mapping[str, str]) -> str:
    """The name a request was sent to, without its port."""
    return re.sub(r":\d+$", "", headers.get("host", "")).strip("[]").lower()


# the token ----------------------------------------------------------------------------------------


@lru_cache
def token() -> str:
    """What makes a host: as set, or made anew for this process."""
    return settings().host_token.get_secret_value() or secrets.token_urlsafe(24)


def host_link(port: int) -> str:
    """Where the host of a shared dashboard becomes it. Shown once, to who started the dashboard; a
    token he has set himself is not repeated."""
    address = settings().host
    name = socket.gethostname() if address in ("", "0.0.0.0", "::") else address
    name = f"[{name}]" if ":" in name else name
    known = bool(settings().host_token.get_secret_value())
    return f"http://{name}:{port}/slimscope/host" + ("" if known else f"#{token()}")


def _same(given: str, right: str) -> bool:
    """Compares in a time that does not depend on where they differ."""
    return hmac.compare_digest(given.encode(), right.encode())


def _signed(text: str) -> str:
    return hmac.new(token().encode(), text.encode(), hashlib.sha256).hexdigest()


def bearer(headers: Mapping[str, str]) -> str:
    """The token in the `Authorization` header, "" without one."""
    scheme, _, given = headers.get("authorization", "").partition(" ")
    return given.strip() if scheme.lower() == "bearer" else ""


def _shows_token(headers: Mapping[str, str]) -> bool:
    by_cookie = _same(_cookie(headers, "host"), _signed("host"))
    return by_cookie or _same(bearer(headers), token())


# cookies ------------------------------------------------------------------------------------------


def cookie_name(role: str) -> str:
    """Browsers do not tell ports apart, so two dashboards on one machine need two names."""
    return f"slimscope-{role}-{settings().port}"


def _cookie(headers: Mapping[str, str], role: str) -> str:
    try:
        found = SimpleCookie(headers.get("cookie", "")).get(cookie_name(role))
    except CookieError:
        return ""
    return found.value if found else ""


def _guest(headers: Mapping[str, str]) -> str:
    """The name in the guest's cookie, "" unless it was given by us."""
    name, _, signature = _cookie(headers, "guest").partition(".")
    return name if name.startswith(GUEST) and _same(signature, _signed(name)) else ""


def new_guest() -> str:
    """The value of a new guest's cookie."""
    name = GUEST + secrets.token_hex(4)
    return f"{name}.{_signed(name)}"


def cookie_header(role: str, value: str, headers: Mapping[str, str]) -> str:
    """A `Set-Cookie` no script can read and no other site can make a browser send. It lives until
    the browser is closed."""
    secure = "; Secure" if headers.get("x-forwarded-proto") == "https" else ""
    return f"{cookie_name(role)}={value}; HttpOnly; SameSite=Strict; Path=/{secure}"


# the page where a host shows the token ------------------------------------------------------------

FORM = """<h1>Become the host</h1>
<p>Whoever started this dashboard was shown a token. With it you may add, cancel and resume runs.
{said}<form method="post"><label>Token <input type="password" name="token" required></label>
<button>Go on</button></form>
<script>
const form = document.forms[0], shown = location.hash.slice(1);
if (shown) {{
  history.replaceState(null, "", location.pathname);
  form.token.value = shown;
  form.submit();
}}
</script>"""


def bare_page(title: str, body: str, status: int = 200) -> HTMLResponse:
    """A page that needs neither Gradio nor any file."""
    return HTMLResponse(
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{title} · Slimscope</title>'
        '<meta name="viewport" content="width=device-width"><style>:root{color-scheme:light dark}'
        "body{font:16px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem}"
        "td,th{text-align:left;padding:.3rem 1rem .3rem 0;vertical-align:top}"
        f"input,button{{font:inherit;padding:.4rem .8rem}}</style>{body}</html>",
        status,
    )


async def host_page(request: Request) -> Response:
    """GET shows the form; POST exchanges the token for the host's cookie."""
    if request.method != "POST":
        return bare_page("Host", FORM.format(said=""))
    given = parse_qs((await request.body()).decode("utf-8", "replace")).get("token", [""])[0]
    client = request.client.host if request.client else ""
    try:
        check_token(given, client)
    except SlimscopeError as error:
        reject(client, error)
        code = 429 if isinstance(error, RateLimitError) else 403
        return bare_page("Host", FORM.format(said=problem(error)), code)
    response = RedirectResponse("../", 303)
    response.headers["set-cookie"] = cookie_header("host", _signed("host"), request.headers)
    return response


def check_token(given: str, client: str) -> None:
    """Raises `ForbiddenError` unless this is the token, and `RateLimitError` after ten
    wrong ones within a minute."""
    if not _same(given.strip(), token()):
        tries.spend(client, TRIES_PER_MINUTE)
        raise ForbiddenError("You are not the host.", WRONG, ASK)

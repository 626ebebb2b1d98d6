"""Protection against cross-site request forgery. No token is needed: browsers say who caused a
request, and host sessions are bound to the address they came from (`ui.security.sessions`).
"""

from starlette.requests import Request


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

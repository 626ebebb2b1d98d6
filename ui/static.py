"""Scripts: our own, and Plotly's: the file inside the installed Python package, compressed once,
kept by the browser for a year under an address that changes with the version."""

from __future__ import annotations

import gzip
from functools import lru_cache
from importlib.metadata import version
from pathlib import Path

from plotly.offline import get_plotlyjs
from starlette.requests import Request
from starlette.responses import Response

ASSETS = Path(__file__).parent / "assets"
SCRIPT_URL = f"slimscope/plotly-{version('plotly')}.min.js"
FOREVER = "public, max-age=31536000, immutable"


def own_scripts() -> str:
    """What the pages do in the browser: `slimscope.js`, and what adds to it."""
    first = ASSETS / "slimscope.js"
    others = sorted(path for path in ASSETS.glob("*.js") if path != first)
    return "\n".join(path.read_text(encoding="utf-8") for path in (first, *others))


@lru_cache
def _script() -> tuple[bytes, bytes]:
    """The script, plain and compressed."""
    plain = get_plotlyjs().encode()
    return plain, gzip.compress(plain, compresslevel=6, mtime=0)


def plotly_script(request: Request) -> Response:
    """The script as the browser can take it."""
    plain, packed = _script()
    headers = {"Cache-Control": FOREVER, "Vary": "Accept-Encoding"}
    if "gzip" not in request.headers.get("accept-encoding", ""):
        return Response(plain, media_type="text/javascript", headers=headers)
    headers["Content-Encoding"] = "gzip"
    return Response(packed, media_type="text/javascript", headers=headers)

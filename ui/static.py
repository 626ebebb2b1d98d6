"""Scripts: our own, and Plotly's from the installed Python package, compressed once and cached by
browsers for a year under an address that contains its version."""

from __future__ import annotations

import gzip
import threading
from collections.abc import Callable
from functools import lru_cache
from importlib.metadata import version
from pathlib import Path
from typing import TypeVar

from plotly.offline import get_plotlyjs
from starlette.requests import Request
from starlette.responses import Response

ASSETS = Path(__file__).parent / "assets"
SCRIPTS, STYLES = ASSETS / "scripts", ASSETS / "styles"
SCRIPT_URL = f"slimscope/plotly-{version('plotly')}.min.js"
FOREVER = "public, max-age=31536000, immutable"

T = TypeVar("T")


def once(function: Callable[[], T]) -> Callable[[], T]:
    """Function carried out once; simultaneous callers wait, which `lru_cache` does not do."""
    lock, cached = threading.Lock(), lru_cache(function)

    def result() -> T:
        with lock:
            return cached()

    return result


def own_scripts() -> str:
    base = SCRIPTS / "slimscope.js"
    others = sorted(path for path in SCRIPTS.glob("*.js") if path != base)
    return "\n".join(path.read_text(encoding="utf-8") for path in (base, *others))


@once
def _script() -> tuple[bytes, bytes]:
    plain = get_plotlyjs().encode()
    return plain, gzip.compress(plain, compresslevel=6, mtime=0)


def plotly_script(request: Request) -> Response:
    plain, packed = _script()
    headers = {"Cache-Control": FOREVER, "Vary": "Accept-Encoding"}
    if "gzip" not in request.headers.get("accept-encoding", ""):
        return Response(plain, media_type="text/javascript", headers=headers)
    headers["Content-Encoding"] = "gzip"
    return Response(packed, media_type="text/javascript", headers=headers)

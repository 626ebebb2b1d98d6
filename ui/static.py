"""JavaScript files: scripts inlined in every page, ES modules loaded by single pages, and Plotly
from the installed Python package, compressed once. Browsers cache modules and Plotly for a year at
a versioned URL."""

import gzip
import hashlib
import threading
from collections.abc import Callable
from functools import lru_cache
from importlib.metadata import version
from pathlib import Path
from typing import TypeVar

from plotly.offline import get_plotlyjs
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

ASSETS = Path(__file__).parent / "assets"
SCRIPTS, STYLES = ASSETS / "scripts", ASSETS / "styles"
SCRIPT_URL = f"slimscope/plotly-{version('plotly')}.min.js"
CACHE_FOREVER = "public, max-age=31536000, immutable"
MODULES = "slimscope/modules"  # URL of the subfolders of `SCRIPTS`

T = TypeVar("T")


def once(function: Callable[[], T]) -> Callable[[], T]:
    """Call the function only once. Concurrent callers wait, unlike with `lru_cache`."""
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
def _modules() -> dict[str, bytes]:
    """Return ES modules by their path below `SCRIPTS`."""
    paths = SCRIPTS.glob("*/*.js")
    return {path.relative_to(SCRIPTS).as_posix(): path.read_bytes() for path in sorted(paths)}


def modules_version() -> str:
    """Return the content hash that is part of the modules' URL."""
    return hashlib.sha256(b"".join(_modules().values())).hexdigest()[:16]


def module_script(request: Request) -> Response:
    content = _modules().get(request.path_params["path"])
    if content is None:
        raise HTTPException(404)
    is_current = request.path_params["version"] == modules_version()
    headers = {"Cache-Control": CACHE_FOREVER if is_current else "no-store"}
    return Response(content, media_type="text/javascript", headers=headers)


@once
def _script() -> tuple[bytes, bytes]:
    plain = get_plotlyjs().encode()
    return plain, gzip.compress(plain, compresslevel=6, mtime=0)


def plotly_script(request: Request) -> Response:
    plain, packed = _script()
    headers = {"Cache-Control": CACHE_FOREVER, "Vary": "Accept-Encoding"}
    if "gzip" not in request.headers.get("accept-encoding", ""):
        return Response(plain, media_type="text/javascript", headers=headers)
    headers["Content-Encoding"] = "gzip"
    return Response(packed, media_type="text/javascript", headers=headers)

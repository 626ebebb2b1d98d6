"""Scripts: our own, which every page holds; modules, which a page loads; and Plotly's from the
installed Python package, compressed once. Browsers cache the latter two for a year under an address
that contains their version."""

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
FOREVER = "public, max-age=31536000, immutable"
MODULES = "slimscope/modules"  # address of the folders of `SCRIPTS`: modules that one page loads

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
def _modules() -> dict[str, bytes]:
    """ES modules by their path below `SCRIPTS`."""
    paths = SCRIPTS.glob("*/*.js")
    return {path.relative_to(SCRIPTS).as_posix(): path.read_bytes() for path in sorted(paths)}


def modules_version() -> str:
    """Part of their address, which changes with them."""
    return hashlib.sha256(b"".join(_modules().values())).hexdigest()[:16]


def module_script(request: Request) -> Response:
    content = _modules().get(request.path_params["path"])
    if content is None:
        raise HTTPException(404)
    fresh = request.path_params["version"] == modules_version()
    headers = {"Cache-Control": FOREVER if fresh else "no-store"}
    return Response(content, media_type="text/javascript", headers=headers)


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

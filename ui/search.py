"""Results of the search box in the frame: runs by id, name, model, kind, state or tag."""

from __future__ import annotations

from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from backend.store import queries
from backend.store.tables import run_name

MAX_HITS = 8
MAX_QUERY = 100  # characters


def search_runs(text: str) -> list[dict[str, Any]]:
    """Newest runs that contain every word; first those whose id contains the first word."""
    words = text.lower().split()
    hits = []
    for row in queries.run_names() if words else ():
        run, tags = run_name(row.kind, row.id), row.tags or ()
        haystack = " ".join((run, row.name, row.model or "", row.state, *tags)).lower()
        if all(word in haystack for word in words):
            about = [row.name, row.model or "", *(f"#{tag}" for tag in tags)]
            hits.append({"run": run, "state": row.state, "about": " · ".join(filter(None, about))})
    return sorted(hits, key=lambda hit: words[0] not in hit["run"])[:MAX_HITS]


def search(request: Request) -> Response:
    hits = search_runs(request.query_params.get("q", "")[:MAX_QUERY])
    return JSONResponse(hits, headers={"Cache-Control": "no-store"})

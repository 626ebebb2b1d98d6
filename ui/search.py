"""What the search box in the frame asks for: runs by id, name, model, kind, state or tag."""

from __future__ import annotations

from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from backend.store import queries
from backend.store.tables import run_name

MOST = 8
LETTERS = 100


def found(text: str) -> list[dict[str, Any]]:
    """The newest runs that hold every word; those whose id holds the first one lead."""
    words = text.lower().split()
    held = []
    for row in queries.run_names() if words else ():
        run = run_name(row.kind, row.id)
        parts = (run, row.name, row.model or "", row.state, *(row.tags or ()))
        if all(word in " ".join(parts).lower() for word in words):
            about = [row.name, row.model or "", *(f"#{tag}" for tag in row.tags or ())]
            held.append({"run": run, "state": row.state, "about": " · ".join(filter(None, about))})
    return sorted(held, key=lambda hit: words[0] not in hit["run"])[:MOST]


def search(request: Request) -> Response:
    """The runs that match `?q=`, as JSON."""
    hits = found(request.query_params.get("q", "")[:LETTERS])
    return JSONResponse(hits, headers={"Cache-Control": "no-store"})

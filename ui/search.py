"""Results of the search box in the frame: terms and metrics of Help, and runs by id, name, model,
kind, state or tag."""

from collections.abc import Iterator

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from backend.store import queries
from backend.store.tables import run_name
from ui.format import href, term_id
from ui.pages.help.glossary import known_terms

MAX_HITS, MAX_TERMS = 8, 3
MAX_QUERY = 100  # characters
Hit = dict[str, str]  # title, about, to: its address


def search_terms(text: str) -> list[Hit]:
    """Terms that begin with the text, or have a word that does."""
    wanted = text.strip().lower()
    found = (
        {"title": term, "about": definition, "to": f"{href('help')}#{term_id(term)}"}
        for term, definition in known_terms().items()
        if wanted and f" {term.lower()}".find(f" {wanted}") >= 0
    )
    return sorted(found, key=lambda hit: len(hit["title"]))[:MAX_TERMS]


def search_runs(text: str) -> list[Hit]:
    """Newest runs that contain every word; first those whose id contains the first word."""
    words = text.lower().split()
    hits = [*_runs_with(words)] if words else []
    return sorted(hits, key=lambda hit: words[0] not in hit["title"])[:MAX_HITS]


def _runs_with(words: list[str]) -> Iterator[Hit]:
    for row in queries.run_names():
        run, tags = run_name(row.kind, row.id), row.tags or ()
        haystack = " ".join((run, row.name, row.model or "", row.state, *tags)).lower()
        if all(word in haystack for word in words):
            about = [row.state, row.name, row.model or "", *(f"#{tag}" for tag in tags)]
            yield {
                "title": run,
                "about": " · ".join(filter(None, about)),
                "to": href("run", id=run),
            }


def search(request: Request) -> Response:
    text = request.query_params.get("q", "")[:MAX_QUERY]
    hits = [*search_runs(text), *search_terms(text)]
    return JSONResponse(hits, headers={"Cache-Control": "no-store"})

"""Results of the search box in the frame: terms and metrics of Help, and runs by id, name, model,
kind, state or tag."""

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from backend.store.queries import RunHead
from backend.store.tables import Job
from ui.format import href, term_id
from ui.pages.help.glossary import QUESTIONS, known_terms
from ui.runs.rows import all_rows

MAX_HITS, MAX_TERMS = 8, 3
MAX_QUERY = 100  # characters
Hit = dict[str, str]  # title, about, to: its address


def search_terms(text: str) -> list[Hit]:
    """Terms, and questions of Help, that begin with the text, or have a word that does; else those
    whose definitions have all its words."""
    wanted = text.strip().lower()
    found = [
        {"title": term, "about": definition, "to": f"{href('help')}#{term_id(term)}"}
        for term, definition in known_terms().items()
    ] + [
        {"title": question, "about": answer, "to": href(page.replace("home", ""))}
        for question, (answer, page) in QUESTIONS.items()
    ]
    named = [hit for hit in found if wanted and f" {wanted}" in f" {hit['title'].lower()}"]
    words = wanted.split()
    told = [hit for hit in found if words and all(w in hit["about"].lower() for w in words)]
    return sorted(named or told, key=lambda hit: len(hit["title"]))[:MAX_TERMS]


def search_runs(text: str) -> list[Hit]:
    """Newest runs that contain every word; first those whose id contains the first word."""
    words = text.lower().split()
    rows = all_rows() if words else []
    found = [row.head for row in rows if all(word in row.names for word in words)]
    return [_hit(run) for run in sorted(found, key=lambda run: words[0] not in run.run)[:MAX_HITS]]


def _hit(run: Job | RunHead) -> Hit:
    model, tags = str(run.config.get("model", "")), [f"#{tag}" for tag in run.tags or ()]
    return {
        "title": run.run,
        "about": " · ".join(filter(None, (run.state, run.name, model, *tags))),
        "to": href("run", id=run.run),
    }


def search(request: Request) -> Response:
    text = request.query_params.get("q", "")[:MAX_QUERY]
    hits = [*search_runs(text), *search_terms(text)]
    return JSONResponse(hits, headers={"Cache-Control": "no-store"})

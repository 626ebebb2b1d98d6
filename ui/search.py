"""The search of the header: runs, tensors, terms, settings and actions.

Each provider returns the hits for a text; the browser adds pages and its own actions."""

import re
from collections.abc import Callable, Iterable
from html import unescape

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from backend.queue.stories import stories
from backend.store import queries
from jobs.kind import kinds
from ui.format import href, term_id
from ui.help import QUESTIONS, known_terms
from ui.runs.results import fields_of, setting_title
from ui.runs.rows import all_rows

MAX_LETTERS = 100
MAX_HITS, MAX_OTHERS = 8, 3  # runs; hits of each other provider
MAX_SEARCHED = 10  # runs in which a tensor is searched
Hit = dict[str, str]  # keys: title, about, to (URL)


def search_runs(text: str) -> list[Hit]:
    """Find the newest runs that contain every word. Runs whose id contains the first word lead."""
    words = text.lower().split()
    rows = all_rows() if words else []
    matches = [row.head for row in rows if all(word in row.search_names for word in words)]
    hits = []
    for run in sorted(matches, key=lambda run: words[0] not in run.run)[:MAX_HITS]:
        model, tags = str(run.config.get("model", "")), [f"#{tag}" for tag in run.tags or ()]
        about = " · ".join(filter(None, (run.state, run.name, model, *tags)))
        hits.append({"title": run.run, "about": about, "to": href("run", id=run.run)})
    return hits


def search_tensors(text: str) -> list[Hit]:
    """Find tensors by block and layer ("up 20") or name in recent runs, or in the named run: a few
    of the newest run with such tensors, and one of each other run."""
    words, hits = text.lower().split(), list[Hit]()
    for job in queries.runs_with_weights(MAX_SEARCHED) if words else ():
        wanted = [word for word in words if "-" not in word or word not in job.run]
        found = [
            {
                "title": f"Block {block}, {module.rpartition('.')[2]}",
                "about": f"tensor of {job.run}",
                "to": href("weights", run=job.run, tensor=tensor),
            }
            for tensor, block, module in queries.tensor_names(job.id)
            if wanted and all(_names(word, tensor, block, module) for word in wanted)
        ]
        hits += found[: 1 if hits else MAX_OTHERS]
    return hits[:MAX_HITS]


def _names(word: str, tensor: str, block: int, module: str) -> bool:
    """Return True if a word names a tensor: its block, a part of its layer, or a part of its name
    with a dot."""
    parts = {str(block), "block", *re.split(r"[._]", module), *module.split(".")}
    return word in parts or ("." in word and word.strip(".") != "" and word in tensor)


def search_stories(text: str) -> list[Hit]:
    """Find stories by their titles, and the tour of the bundled one."""
    entries = [
        {"title": row.title, "about": "story", "to": href("story", n=row.id)} for row in stories()
    ]
    tour = {"title": "Tour of Weights", "about": "story", "to": "slimscope/story?tour"}
    return _by_title([*entries, tour], text)


def search_terms(text: str) -> list[Hit]:
    """Find terms and questions of the help drawer."""
    entries = [
        {"title": term, "about": definition, "to": f"#{term_id(term)}"}
        for term, definition in known_terms().items()
    ] + [
        {"title": question, "about": answer, "to": href(page.replace("home", ""))}
        for question, (answer, page) in QUESTIONS.items()
    ]
    return _by_title(entries, text)


def search_settings(text: str) -> list[Hit]:
    """Find kinds of runs and their settings, which *New run* opens."""
    actions = [
        {"title": f"New run: {kind.title}", "about": kind.summary, "to": href("new-run", kind=name)}
        for name, kind in kinds().items()
    ]
    settings = [
        {
            "title": setting_title(name, field),
            "about": f"setting of {kind.title}",
            "to": href("new-run", kind=name),
        }
        for name, kind in kinds().items()
        for field in fields_of(name)
    ]
    return _by_title([*actions, *settings], text)


def _by_title(entries: Iterable[Hit], text: str) -> list[Hit]:
    """Entries with the text at the start of a word in the title, the shortest title first; if there
    are none, entries whose description contains all words."""
    prefix, words = text.strip().lower(), text.lower().split()
    entries = [*entries]
    in_title = [hit for hit in entries if prefix and f" {prefix}" in f" {hit['title'].lower()}"]
    in_text = [hit for hit in entries if words and all(w in hit["about"].lower() for w in words)]
    return sorted(in_title or in_text, key=lambda hit: len(hit["title"]))[:MAX_OTHERS]


PROVIDERS: tuple[Callable[[str], list[Hit]], ...] = (
    search_runs,
    search_tensors,
    search_stories,
    search_terms,
    search_settings,
)


def search(request: Request) -> Response:
    text = request.query_params.get("q", "")[:MAX_LETTERS]
    hits = [hit for provider in PROVIDERS for hit in provider(text)]
    for hit in hits:
        hit["to"] = unescape(hit["to"])  # the browser takes it as text, not as markup
    return JSONResponse(hits, headers={"Cache-Control": "no-store"})

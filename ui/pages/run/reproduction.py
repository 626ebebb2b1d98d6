"""Whether a run gave the same results a second time, as HTML."""

from __future__ import annotations

from markupsafe import Markup

from backend.store import queries
from backend.store.tables import Job
from jobs.replay import compare, replayed
from ui.templates import fragments

HTML = fragments("pages/run/page.html")


def reproduction_card(job: Job) -> Markup:
    """The comparison with the run this one repeats, and with those that repeat it."""
    own = replayed(job)
    others = [compare(job.id, other.id) for other in queries.replays(job.id)]
    pairs = [(own, own.first)] if own else []
    return HTML.reproductions([*pairs, *((each, each.second) for each in others)])

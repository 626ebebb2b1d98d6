"""Why a page has nothing to show of a run, and where it would come from."""

from __future__ import annotations

from backend.errors import NotFoundError
from backend.store import queries
from backend.store.states import ACTIVE
from ui.format import href
from ui.widgets.html import empty


def empty_state(run: str, lacks: str, later: str, launch: str) -> str:
    """HTML.

    Args:
        lacks: what the run has not done, as in "stored no weight statistics".
        later: how it comes while the run goes on, a sentence.
        launch: address of the form that starts another.
    """
    try:
        waits = queries.job(run).state in ACTIVE
    except NotFoundError:
        waits = False
    if waits:
        return empty(f"{run} has {lacks} yet. {later}", (href("jobs", id=run), "See the queue"))
    return empty(f"{run} has {lacks}.", (launch, "New run"))

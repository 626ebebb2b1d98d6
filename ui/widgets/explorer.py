"""Pages that explore the data of one run: the selection in an address, and cached reading.

The address gives a `Selection`; a view adds the recorded data and corrects fields that the data
does not have."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, fields
from functools import lru_cache
from typing import Any, Generic, Self, TypeVar

import gradio as gr
from markupsafe import Markup

from backend.errors import NotFoundError
from backend.settings import settings
from backend.store import queries
from backend.store.states import ACTIVE
from ui.format import href
from ui.frame import query
from ui.widgets.html import WIDGETS

Mark = tuple[Any, ...]
Data = TypeVar("Data")


@dataclass(frozen=True)
class Selection:
    """The selection of a page. Its fields are those of the address; empty for the default."""

    run: str = ""

    @classmethod
    def from_address(cls, request: gr.Request) -> Self:
        """The selection in the address of a request."""
        return cls(*(query(request, field.name) for field in fields(cls)))


def valid_or_first(value: str, valid: Iterable[str]) -> str:
    """The value if it is valid, else the first valid one."""
    valid = [*valid]
    return value if value in valid else valid[0]


class RunReader(Generic[Data]):
    """A cached reader of a run's data, shared by all open pages.

    A run is read again when its mark changes. Without data the result is None."""

    def __init__(
        self, read: Callable[[str], Data], mark: Callable[[str], Mark | None], size: int = 8
    ) -> None:
        self._mark = mark

        @lru_cache(maxsize=size)
        def cached(_url: str, mark: Mark) -> Data:
            return read(mark[0])

        self._cached = cached
        self.clear = cached.cache_clear

    def __call__(self, run: str) -> Data | None:
        mark = self._mark(run) if run else None
        return self._cached(settings().url, mark) if mark and mark[1] else None


def cached_by(
    mark: Callable[[str], Mark | None],
) -> Callable[[Callable[[str], Data]], RunReader[Data]]:
    """Decorator that caches a function of one run until the run's mark changes.

    Args:
        mark: the run's name, the number of recorded items, and further values that change with the
            data; None if there is no such run.
    """
    return lambda read: RunReader(read, mark)


def page_state() -> gr.JSON:
    """A value that the browser keeps and sends with each event.

    `gr.State` is no alternative: it makes every page hold a connection (Gradio 6.31), and browsers
    open at most six connections to a server."""
    return gr.JSON(None, visible=False)


def empty_state(run: str, no_run: str, lacks: str, later: str, launch: str) -> Markup:
    """The notice on a page without data.

    Args:
        run: selected run; empty if none exists.
        no_run: sentence without a run.
        lacks: what the run lacks, as in "recorded no groups".
        later: sentence for a run that is still active.
        launch: address of a form that creates the data.
    """
    if not run:
        return WIDGETS.empty(no_run, (launch, "New run"))
    try:
        job = queries.job(run)
    except NotFoundError:
        unknown = f"There is no run {run}. Choose one above."
        return WIDGETS.empty(unknown, (href("runs"), "All runs"))
    if job.purged:
        deleted = f"{run} and its figures were deleted. Choose another run above."
        return WIDGETS.empty(deleted, (href("runs"), "All runs"))
    if job.state in ACTIVE:
        return WIDGETS.empty(f"{run} has {lacks} yet. {later}", (href("runs"), "See the queue"))
    return WIDGETS.empty(f"{run} has {lacks}.", (launch, "New run"))
